// Browsers start no worker for a page that is opened as file://. The search of the site then runs in a hidden frame.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement('iframe')
      frame.hidden = true
      this.ready = new Promise(resolve => {
        frame.addEventListener('load', () => {
          const inside = frame.contentWindow, script = inside.document.createElement('script')
          inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', {data}))
          script.src = url
          script.onload = () => resolve(inside)
          inside.document.body.append(script)
        }, {once: true})
      })
      document.body.append(frame)
    }
    postMessage(data) { this.ready.then(w => w.dispatchEvent(new w.MessageEvent('message', {data}))) }
  }
}
