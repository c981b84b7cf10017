// Search in a site that is read from a folder: for file: addresses browsers start no worker, so a hidden frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script>window.postMessage = data => parent.dispatchEvent(new CustomEvent("frame-worker", { detail: data }))</script>
        <script src="${new URL(address, location)}"></script>`;
      this.frame.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach(data => this.postMessage(data));
      };
      addEventListener("frame-worker", event => {
        const message = new MessageEvent("message", { data: event.detail });
        this.dispatchEvent(message);
        this.onmessage?.(message);
      });
      document.addEventListener("DOMContentLoaded", () => document.body.append(this.frame));
      if (document.body) document.body.append(this.frame);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
