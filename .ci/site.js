// A picture or a chart opens in full size: by its button, or a picture by a click on it. Escape closes it again.
document.addEventListener('click', e => {
  const button = e.target.closest('.full-size')
  const picture = button ? ['svg.marks', 'img, svg, canvas'].map(o => button.parentElement.querySelector(o)).find(o => o)
                         : e.target.closest('main img:not(a img)')
  if (!picture) return
  const dialog = document.createElement('dialog')
  const shut = document.createElement('button')
  const whole = picture.cloneNode(true)
  const named = picture.closest('[role=figure]') ?? picture.closest('[aria-label]')
  const told = picture.alt || named?.getAttribute('aria-label') || 'Picture'
  dialog.className = 'whole-picture'
  dialog.setAttribute('aria-label', told)
  shut.className = 'btn btn-sm btn-outline-secondary'
  shut.textContent = 'Close'
  const wide = picture.naturalWidth || picture.viewBox?.baseVal?.width || picture.width?.baseVal?.value || 600
  whole.style = `width: max(${wide}px, min(${picture.naturalWidth ? wide : 2*wide}px, 90vw))`
  if (picture.matches('canvas')) whole.getContext('2d').drawImage(picture, 0, 0)
  const frame = document.createElement('div')
  frame.tabIndex = 0                               // The arrow keys move a picture that is larger than the window
  frame.setAttribute('role', 'group')
  frame.setAttribute('aria-label', told)
  frame.append(whole)
  dialog.append(shut, frame)
  document.body.append(dialog)
  shut.onclick = () => dialog.close()
  dialog.onclick = o => { if (o.target===dialog) dialog.close() }
  dialog.onclose = () => { dialog.remove(); button?.focus() }
  dialog.showModal()
})

for (const picture of document.querySelectorAll('main img:not(a img), [id^=altair-viz], .cell-output > svg')) {
  const holder = document.createElement('span')
  const button = document.createElement('button')
  const told = picture.alt || picture.getAttribute('aria-label') || 'Picture'
  holder.className = 'with-full-size'
  button.className = 'full-size btn btn-sm btn-link'
  button.textContent = 'full size'
  button.setAttribute('aria-label', `Full size: ${told}`)
  picture.replaceWith(holder)
  holder.append(picture, button)
}

// What was printed wraps, and only tables drawn with lines keep their columns and scroll
document.addEventListener('DOMContentLoaded', () => document.querySelectorAll('.cell-output pre').forEach(o =>
  o.classList.toggle('wraps', !/[│┆┌]/.test(o.textContent))))

// Search: what teaches stands first, then a public function of that name; to fuzzy search all texts are alike
const Fuzzy = window.Fuse
window.Fuse = class {
  constructor(index, how) {
    this.fuzzy = new Fuzzy(index, how)
    this.parts = index.map((o, i) => ({...o, first: index[i-1]?.href.split('#')[0]!==o.href.split('#')[0]}))
  }
  search(asked, {limit}) {
    const words = asked.toLowerCase().match(/[^\s_]+/g) ?? [], name = words.join(' ')
    const stems = words.map(o => o.length>4 ? o.replace(/(ing|ed|es|s|e)$/, '') : o)     // serve, served and serving
      .map(o => new RegExp('(?<![a-z0-9])' + o.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'gi'))
    const held = text => stems.filter(o => text.search(o)>=0).length
    const found = this.parts.map(item => {
      const head = item.first ? `${item.title} ${item.section}` : item.section, all = held(`${head} ${item.text}`)
      const named = item.public && item.section.toLowerCase().replaceAll('_', ' ')===name
      const group = item.teaches && held(head)===words.length ? 0 : named ? 1 : item.teaches ? 2
        : item.public && held(head) ? 3 : held(head) ? 4 : 5
      const often = stems.reduce((n, o) => n + (item.text.match(o) ?? []).length, 0)
      return {item, key: [-all, group, -held(head), -often]}
    }).filter(o => o.key[0])
    found.sort((a, b) => a.key.map((o, i) => o - b.key[i]).find(o => o) ?? 0)
    return found.length ? found.slice(0, limit) : this.fuzzy.search(asked, {limit})     // It may be mistyped
  }
}
