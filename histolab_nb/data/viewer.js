// The screen of `SlideViewer`. It shows the last picture that Python sent, moved and enlarged to where the reader is now, and asks for the next one.
const style = `
.histolab-viewer {position:relative; display:inline-block; max-width:100%; line-height:0}
.histolab-viewer canvas {max-width:100%; height:auto; background:#e8e8e8; cursor:grab; touch-action:none; outline:1px solid #bbb}
.histolab-viewer canvas:focus {outline:2px solid #0072B2}
.histolab-viewer .keys {position:absolute; left:8px; top:8px; display:flex; flex-direction:column; gap:4px}
.histolab-viewer button {width:28px; height:28px; padding:0; font:18px/26px sans-serif; color:#222; background:#ffffffdd; border:1px solid #888; border-radius:4px; cursor:pointer}
.histolab-viewer .says {position:absolute; left:50%; top:10px; transform:translateX(-50%); padding:4px 10px; font:13px/1.4 sans-serif; color:#fff; background:#000b; border-radius:4px; max-width:80%; pointer-events:none}
.histolab-viewer .says:empty {display:none}`

function render({model, el}) {
  const make = (tag, props, parent) => parent.appendChild(Object.assign(document.createElement(tag), props))
  make('style', {textContent: style}, el)
  const box = make('div', {className: 'histolab-viewer'}, el)
  const [w, h] = model.get('size')
  const canvas = make('canvas', {width: w, height: h, tabIndex: 0}, box)
  canvas.setAttribute('role', 'application')
  canvas.setAttribute('aria-label', 'whole-slide viewer: drag or arrow keys to move, + and - to zoom, 0 for the whole slide')
  const keys = make('div', {className: 'keys'}, box), says = make('div', {className: 'says'}, box)
  const ctx = canvas.getContext('2d'), me = `${Math.random()}/` // tells the questions of this display from those of another display of the same viewer
  let frame = null, at = null, asked = null, count = 0, since = 0, drag = null, hint = 0, turn = Promise.resolve()

  function draw() {
    ctx.clearRect(0, 0, w, h)
    if (!frame) return
    const k = frame.view.s/at.s
    ctx.drawImage(frame.picture, (frame.view.x-at.x)/at.s, (frame.view.y-at.y)/(at.s*frame.ratio), w*k, h*k)
    ctx.drawImage(frame.above, 0, 0)
    canvas.dataset.view = JSON.stringify(at)
  }
  function tell(text, ms) {
    says.textContent = text
    clearTimeout(hint)
    if (ms) hint = setTimeout(() => says.textContent = '', ms)
  }
  function ask() {
    if (asked && performance.now()-since<5000) return
    asked = {at, mark: me+(++count)}
    since = performance.now()
    const mine = asked
    setTimeout(() => { if (asked===mine) tell('waiting for the kernel') }, 1500)
    setTimeout(() => { if (asked===mine) tell('no answer: the kernel is busy, or was restarted; then run this cell again') }, 5000)
    model.send({kind: 'view', mark: asked.mark, ...at})
  }
  function go(view) {
    if (!frame) return
    const lo = frame.limits[0], hi = frame.limits[1], s = Math.min(Math.max(view.s, lo), hi)
    at = {...view, s}
    draw()
    ask()
  }
  function move(dx, dy) { if (frame) go({x: at.x-dx*at.s, y: at.y-dy*at.s*frame.ratio, s: at.s}) }
  function zoom(f, px = w/2, py = h/2) {
    if (!frame) return
    const s = Math.min(Math.max(at.s*f, frame.limits[0]), frame.limits[1])
    go({x: at.x+px*(at.s-s), y: at.y+py*(at.s-s)*frame.ratio, s})
  }
  function whole() { if (frame) go({...frame.whole}) }
  function place(e) {
    const r = canvas.getBoundingClientRect()
    return [(e.clientX-r.left)*w/r.width, (e.clientY-r.top)*h/r.height]
  }
  function inset(px, py) {
    if (!frame || !frame.inset) return null
    const [l, t, iw, ih] = frame.inset, u = (px-l)/iw, v = (py-t)/ih
    return u>=0 && u<=1 && v>=0 && v<=1 ? [u*frame.dims[0], v*frame.dims[1]] : null
  }

  async function take(msg, buffers) {
    if (msg.kind==='error') { asked = null; return tell(msg.says) }
    const [picture, above] = await Promise.all(buffers.map((b, i) => createImageBitmap(new Blob([b], {type: ['image/jpeg', 'image/png'][i]}))))
    const mine = asked && msg.answer===asked.mark, old = String(msg.answer).startsWith(me) && !mine
    const still = !frame || msg.force || (mine ? at===asked.at : msg.answer && !old && !asked && !drag)
    frame = {...msg, picture, above}
    if (still) at = msg.view
    if (mine) {
      canvas.dataset.ms = Math.round(performance.now()-since)
      asked = null
    }
    canvas.dataset.frames = Number(canvas.dataset.frames || 0)+1
    if (!asked) tell('')
    draw()
    if (mine && !still) ask()
  }

  canvas.addEventListener('pointerdown', e => {
    if (e.button || drag) return
    canvas.focus({preventScroll: true})
    canvas.setPointerCapture(e.pointerId)
    drag = {id: e.pointerId, at: place(e), far: false, inset: inset(...place(e))}
  })
  canvas.addEventListener('pointermove', e => {
    if (drag?.id!==e.pointerId) return
    const p = place(e), dx = p[0]-drag.at[0], dy = p[1]-drag.at[1]
    if (!drag.far && Math.hypot(dx, dy)<3) return
    drag.far = true
    if (!drag.inset) move(dx, dy)
    drag.at = p
  })
  canvas.addEventListener('pointerup', e => {
    if (drag?.id!==e.pointerId) return
    const c = !drag.far && drag.inset
    if (c) go({x: c[0]-w/2*at.s, y: c[1]-h/2*at.s*frame.ratio, s: at.s})
    drag = null
  })
  canvas.addEventListener('lostpointercapture', e => { if (drag?.id===e.pointerId) drag = null })
  canvas.addEventListener('dblclick', e => { if (!inset(...place(e))) zoom(0.5, ...place(e)) })
  canvas.addEventListener('wheel', e => {
    if (!box.matches(':focus-within') && !e.ctrlKey) return tell('click first, then the wheel zooms', 1500)
    e.preventDefault()
    e.stopPropagation()
    zoom(2**(Math.sign(e.deltaY)*Math.min(Math.abs(e.deltaY)/200, 0.5)), ...place(e))
  }, {passive: false})
  box.addEventListener('keydown', e => {
    if (e.ctrlKey || e.metaKey || e.altKey) return
    const f = {ArrowLeft: () => move(w/4, 0), ArrowRight: () => move(-w/4, 0), ArrowUp: () => move(0, h/4), ArrowDown: () => move(0, -h/4),
      '+': () => zoom(0.5), '=': () => zoom(0.5), '-': () => zoom(2), '0': whole}[e.key]
    if (!f) return
    e.preventDefault()
    e.stopPropagation()
    f()
  })
  for (const [text, title, f] of [['+', 'zoom in', () => zoom(0.5)], ['−', 'zoom out', () => zoom(2)], ['⌂', 'the whole slide', whole]])
    make('button', {textContent: text, title, ariaLabel: title, onclick: f}, keys)
  for (const o of [canvas, ...keys.children]) o.setAttribute('data-lm-suppress-shortcuts', 'true') // each that can have the focus: JupyterLab looks there first
  const listen = (...args) => turn = turn.then(() => take(...args)).catch(e => tell(String(e))) // one after the other
  model.on('msg:custom', listen)
  model.send({kind: 'ready'})
  return () => model.off('msg:custom', listen)
}
export default {render}
