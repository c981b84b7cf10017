"""What the documentation is made from besides its Markdown: pages from the code, pictures, outputs of executed blocks."""
