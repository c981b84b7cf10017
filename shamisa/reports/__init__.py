"""What people look at: plots, pages, matrices."""
