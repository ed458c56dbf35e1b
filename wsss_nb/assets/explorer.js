// One explorer. Its views come from a kernel (`render`: JupyterLab, VS Code, Colab) or lie ready in a page (`start`).
// `packed` is what explore/frame.py makes: zlib of a length, JSON, and the arrays that the JSON counts.
const STYLE = `
.wsss { --ink:#1c1e21; --soft:#5b6168; --ground:#fff; --edge:#c9ced4; --mark:#0b62c4; --bad:#a4161a; --bad-ground:#fdecec;
  color:var(--ink); background:var(--ground); font:14px/1.4 system-ui,sans-serif; box-sizing:border-box; max-width:72em;
  padding:12px; border:1px solid var(--edge); border-radius:8px; container-type:inline-size; }
.wsss[data-dark] { --ink:#e6e8ea; --soft:#a9b0b7; --ground:#181a1d; --edge:#454b52; --mark:#6cb2ff; --bad:#ffb3b0;
  --bad-ground:#431b1c; color-scheme:dark; }
.wsss:not([data-dark]) { color-scheme:light; }
.wsss *, .wsss *::before { box-sizing:border-box; }
.wsss p { margin:0 0 8px; } .wsss .wsss-question { font-weight:600; }
.wsss .wsss-controls { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,230px),1fr)); gap:6px 20px; margin:0 0 10px; }
.wsss .wsss-control { display:grid; grid-template-columns:auto 1fr; gap:0 8px; align-items:center; min-width:0; }
.wsss .wsss-control output { text-align:right; font-variant-numeric:tabular-nums; overflow:hidden; text-overflow:ellipsis; white-space:nowrap; }
.wsss .wsss-control input[type=range] { grid-column:1/-1; width:100%; min-height:26px; margin:0; accent-color:var(--mark); }
.wsss .wsss-control select { width:100%; min-width:0; min-height:30px; font:inherit; color:var(--ink); background:var(--ground); border:1px solid var(--edge); border-radius:4px; }
.wsss .wsss-control input[type=checkbox] { width:18px; height:18px; margin:0; accent-color:var(--mark); }
.wsss .wsss-panels { display:grid; grid-template-columns:repeat(var(--cols),minmax(0,1fr)); gap:10px; margin:0 0 8px; transition:opacity .2s; }
@container (max-width:640px) { .wsss .wsss-panels { grid-template-columns:repeat(min(var(--cols),2),minmax(0,1fr)); } }
.wsss.wsss-late .wsss-panels { opacity:.35; filter:grayscale(1); }
.wsss figure { margin:0; min-width:0; } .wsss figcaption { color:var(--soft); font-size:13px; margin:0 0 2px; text-align:left; }
.wsss canvas { display:block; width:100%; height:auto; background:none; border-radius:3px; touch-action:manipulation; }
.wsss canvas.wsss-small { image-rendering:pixelated; } .wsss .wsss-place { cursor:crosshair; touch-action:manipulation; }
.wsss .wsss-place canvas { touch-action:manipulation; } .wsss .wsss-swiped canvas { touch-action:pan-y; cursor:ew-resize; }
.wsss :focus-visible { outline:3px solid var(--mark); outline-offset:2px; border-radius:3px; }
.wsss input[type=range]:focus-visible { outline-offset:-2px; }
.wsss .wsss-numbers, .wsss .wsss-legend { display:flex; flex-wrap:wrap; gap:4px 16px; list-style:none; margin:0 0 8px; padding:0; }
.wsss .wsss-numbers b { font-variant-numeric:tabular-nums; } .wsss li { margin:0; }
.wsss .wsss-swatch { display:inline-block; width:13px; height:13px; margin-right:5px; vertical-align:-2px; border:1px solid var(--soft); border-radius:2px; }
.wsss .wsss-bar { display:inline-block; width:90px; height:13px; margin:0 5px; vertical-align:-2px; border:1px solid var(--soft); border-radius:2px; }
.wsss .wsss-caption, .wsss .wsss-fixed { color:var(--soft); font-size:13px; overflow-wrap:anywhere; }
.wsss .wsss-error { color:var(--bad); background:var(--bad-ground); padding:6px 10px; border-radius:4px; overflow-wrap:anywhere; }
.wsss [hidden] { display:none; }
.wsss svg { display:block; width:100%; max-width:460px; height:auto; margin:0 0 8px; overflow:visible; }
.wsss svg text { fill:var(--soft); font:12px system-ui,sans-serif; }`;
const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"], DARK_LINES = ["#56b4e9", "#e69f00", "#2fcf9f", "#e3a6c7"];
let made = 0;

async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const all = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = new DataView(all.buffer).getUint32(0, true);
  const said = JSON.parse(new TextDecoder().decode(all.subarray(4, 4 + size)));
  let at = 4 + size;
  said.arrays = said.arrays.map(n => all.subarray(at, at += n));
  said.arrays.forEach((a, k) => { for (let i = said.rows[k]; i < a.length; i++) a[i] += a[i - said.rows[k]]; });
  return said;
}

// %% Pictures, to the bit those of `Panel.paint` (an ImageData rounds as numpy does)
const WEIGHTS = Float32Array.from({ length: 256 }, (_, v) => .75 * Math.fround(Math.sqrt(Math.fround(v / 255))));

function paint(layer, [w, h], { arrays, palette, turbo }) {
  const out = new Uint8ClampedArray(4 * w * h), rgb = arrays[layer.image];
  const map = layer.map === null ? null : arrays[layer.map], [mw, mh] = layer.size || [w, h];
  let colours = arrays[palette];
  if (layer.colours) {
    colours = colours.slice();
    for (const [k, c] of Object.entries(layer.colours)) colours.set(c, 3 * k);
  }
  const heat = arrays[turbo];
  for (let y = 0, i = 0; y < h; y++) {
    const row = Math.floor(y * mh / h) * mw;
    for (let x = 0; x < w; x++, i++) {
      const v = map ? map[row + Math.floor(x * mw / w)] : 0, weight = WEIGHTS[v];
      for (let c = 0; c < 3; c++) {
        const p = rgb[3 * i + c];
        if (layer.kind === "heat") {
          out[4 * i + c] = Math.fround(1 - weight) * (.8 * p + .2 * 255) + Math.fround(weight * heat[3 * v + c]);
        } else out[4 * i + c] = v ? (1 - layer.alpha) * p + layer.alpha * colours[3 * v + c] : p;
      }
      out[4 * i + 3] = 255;
    }
  }
  if (layer.mark) cross(out, w, h, layer.mark);
  return out;
}

function cross(out, w, h, [fx, fy]) {
  const y = Math.min(Math.trunc(fy * h), h - 1), x = Math.min(Math.trunc(fx * w), w - 1);
  const arm = Math.max(Math.floor(Math.min(w, h) / 20), 2);
  for (const [colour, thick] of [[0, 2], [255, 1]]) {
    for (const [dx, dy] of [[arm, thick - 1], [thick - 1, arm]]) {
      for (let b = Math.max(y - dy, 0); b <= Math.min(y + dy, h - 1); b++)
        for (let a = Math.max(x - dx, 0); a <= Math.min(x + dx, w - 1); a++)
          out.fill(colour, 4 * (b * w + a), 4 * (b * w + a) + 3);
    }
  }
}

function draw(canvas, panel, pack, split) {
  const [w, h] = panel.shape, pixels = paint(panel, panel.shape, pack);
  if (panel.other) {
    const right = paint(panel.other, panel.shape, pack), from = Math.round(split * w);
    for (let y = 0; y < h; y++) {
      pixels.set(right.subarray(4 * (y * w + from), 4 * (y + 1) * w), 4 * (y * w + from));
      if (from > 0 && from < w) pixels.fill(255, 4 * (y * w + from), 4 * (y * w + from + 1));
    }
  }
  Object.assign(canvas, { width: w, height: h });
  canvas.getContext("2d").putImageData(new ImageData(pixels, w, h), 0, 0);
}

// %% The page's own parts
function tag(name, attributes = {}, ...children) {
  const el = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) if (v !== null) el.setAttribute(k, v);
  el.append(...children);
  return el;
}

function isDark() {
  const { body } = document, said = [body.dataset.theme, document.documentElement.getAttribute("theme")];
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (body.dataset.vscodeThemeKind) return /dark|high-contrast$/.test(body.dataset.vscodeThemeKind);
  if (said.includes("dark")) return true;
  return !said.includes("light") && matchMedia("(prefers-color-scheme: dark)").matches;
}

function watchTheme(root) {
  const set = () => root.toggleAttribute("data-dark", isDark());
  const seen = new MutationObserver(set), wish = matchMedia("(prefers-color-scheme: dark)");
  for (const el of [document.body, document.documentElement]) seen.observe(el, { attributes: true });
  wish.addEventListener("change", set);
  set();
  return () => { seen.disconnect(); wish.removeEventListener("change", set); };
}

function curve({ title, xs, lines, at }) {
  const SVG = "http://www.w3.org/2000/svg", [w, h, left, top] = [420, 150, 34, 22];
  const svg = document.createElementNS(SVG, "svg"), [low, high] = [xs[0], xs[xs.length - 1]];
  const px = x => left + (w - left - 8) * (x - low) / (high - low || 1), py = y => top + (h - top - 20) * (1 - y);
  const add = (name, attributes, text = "") => {
    const el = document.createElementNS(SVG, name);
    for (const [k, v] of Object.entries(attributes)) el.setAttribute(k, v);
    el.textContent = text;
    svg.append(el);
  };
  let near = 0;
  xs.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(xs[near] - at)) near = i; });
  const said = lines.map(l => `${l.name} ${l.ys[near] === null ? "–" : l.ys[near].toFixed(2)}`).join(", ");
  for (const [k, v] of Object.entries({ viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${title}: at ${+at.toFixed(3)} ${said}` }))
    svg.setAttribute(k, v);
  add("text", { x: 0, y: 12 }, title);
  for (const y of [0, .5, 1]) {
    add("line", { x1: left, x2: w - 8, y1: py(y), y2: py(y), stroke: "var(--edge)" });
    add("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, y);
  }
  for (const x of [low, high]) add("text", { x: px(x), y: h - 4, "text-anchor": "middle" }, +x.toFixed(3));
  const colours = isDark() ? DARK_LINES : LINES;
  lines.forEach(({ name, ys }, i) => {
    const points = xs.map((x, k) => ys[k] === null ? "" : `${px(x).toFixed(1)},${py(ys[k]).toFixed(1)}`).filter(Boolean);
    add("polyline", { points: points.join(" "), fill: "none", stroke: colours[i], "stroke-width": 2 });
    if (ys[near] !== null) add("circle", { cx: px(at), cy: py(ys[near]), r: 4, fill: colours[i] });
    if (lines.length > 1) add("text", { x: w - 8, y: 12 + 0 * i, dx: -110 * i, "text-anchor": "end", style: `fill:${colours[i]}` }, name);
  });
  add("line", { x1: px(at), x2: px(at), y1: top, y2: h - 20, stroke: "var(--ink)", "stroke-dasharray": "4 3" });
  return svg;
}

// %% One explorer in `el`; `ask(name, value)` asks for another view, `show(pack)` shows one
function explorer(el, ask) {
  const id = `wsss${++made}`;
  const root = tag("div", { class: "wsss", role: "group", "data-lm-suppress-shortcuts": "" });  // arrows are ours, not JupyterLab's
  root.addEventListener("keydown", e => e.stopPropagation());
  const parts = {}, pictures = {}, splits = {};
  for (const [k, name] of [["question", "p"], ["controls", "div"], ["error", "p"], ["panels", "div"], ["legend", "ul"],
    ["numbers", "ul"], ["curves", "div"], ["caption", "p"], ["fixed", "p"]]) parts[k] = tag(name, { class: `wsss-${k}` });
  parts.caption.setAttribute("role", "status");
  parts.error.setAttribute("role", "alert");
  parts.error.hidden = true;
  root.append(tag("style", {}, STYLE), ...Object.values(parts));
  el.append(root);
  const controls = {}, waiting = new Map();
  let pack, busy = false, late;

  function want(name, value) {
    waiting.set(name, value);
    if (!busy) next();
  }
  function next() {
    const [[name, value]] = waiting;
    waiting.delete(name);
    busy = true;
    root.setAttribute("aria-busy", "true");
    late = setTimeout(() => root.classList.add("wsss-late"), 500);  // what is shown is not what was asked for
    ask(name, value);
  }

  function control(c) {
    const label = tag("label", { for: `${id}-${c.name}` }, c.label), box = tag("div", { class: "wsss-control" });
    if (c.kind === "choice") {
      const select = tag("select", { id: label.htmlFor });
      select.addEventListener("change", () => want(c.name, select.selectedIndex));
      box.append(label, select);
      return { box, set(s, texts) {
        if ([...select.options].map(o => o.text).join("\n") !== texts.join("\n"))
          select.replaceChildren(...texts.map(t => tag("option", {}, t)));
        select.selectedIndex = texts.includes(s.text) ? texts.indexOf(s.text) : s.index;
      } };
    }
    if (c.kind === "toggle") {
      const input = tag("input", { id: label.htmlFor, type: "checkbox" });
      input.addEventListener("change", () => want(c.name, input.checked));
      box.append(input, label);
      return { box, set(s) { input.checked = s.value; } };
    }
    const input = tag("input", { id: label.htmlFor, type: "range", min: 0, step: 1 }), output = tag("output", { for: label.htmlFor });
    box.append(label, output, input);
    if (c.kind === "swipe") {
      input.max = 100;
      input.addEventListener("input", () => swipe(c, input.value / 100));
      return { box, set(s) {
        const value = splits[c.on] ?? s.value;
        splits[c.on] = value;
        [input.value, output.value] = [Math.round(100 * value), `${Math.round(100 * value)} %`];
      } };
    }
    let known = [];
    input.addEventListener("input", () => {
      output.value = known[input.value] + c.unit;
      input.setAttribute("aria-valuetext", output.value);
      want(c.name, +input.value);
    });
    return { box, set(s, texts) {
      known = texts;
      input.max = texts.length - 1;
      input.value = texts.includes(s.text) ? texts.indexOf(s.text) : s.index;
      output.value = s.text + c.unit;
      input.setAttribute("aria-valuetext", output.value);
    } };
  }

  function swipe(c, value) {
    splits[c.on] = Math.min(Math.max(value, 0), 1);
    controls[c.name].set({ value });
    const panel = pack.view.panels.find(p => p.title === c.on);
    draw(pictures[c.on].canvas, panel, pack, splits[c.on]);
  }

  function picture(panel) {
    const canvas = tag("canvas", { role: "img" }), title = tag("figcaption", {}, panel.title);
    const place = pack.spec.controls.find(c => c.kind === "place" && c.on === panel.title);
    const swiped = pack.spec.controls.find(c => c.kind === "swipe" && c.on === panel.title);
    const figure = tag("figure", { "data-title": panel.title }, title);
    if (!place) figure.append(canvas);
    else {
      const box = tag("div", { class: "wsss-place", tabindex: 0, role: "application", "aria-label": `${place.label}: arrow keys move it` });
      box.append(canvas);
      figure.append(box);
      canvas.addEventListener("click", e => {
        const r = canvas.getBoundingClientRect();
        put((e.clientX - r.left) / r.width, (e.clientY - r.top) / r.height);
        box.focus({ preventScroll: true });
      });
      box.addEventListener("keydown", e => {
        const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
        if (!step) return;
        e.preventDefault();
        e.stopPropagation();
        const { value, grid: [h, w] } = waitingPlace() || pack.view.state[place.name];
        const at = (f, n, by) => (Math.min(Math.floor(f * n), n - 1) + by + .5) / n;    // the middle of the next cell
        put(at(value[0], w, step[0]), at(value[1], h, step[1]));
      });
      const waitingPlace = () => waiting.has(place.name) &&
        { value: waiting.get(place.name), grid: pack.view.state[place.name].grid };
      const put = (x, y) => {
        const { grid: [h, w] } = pack.view.state[place.name];
        const cell = (f, n) => (Math.min(Math.max(Math.floor(f * n), 0), n - 1) + .5) / n;
        want(place.name, [cell(x, w), cell(y, h)]);
      };
    }
    if (swiped) {
      figure.classList.add("wsss-swiped");
      const drag = e => {
        if (e.type === "pointermove" && !e.buttons) return;
        const r = canvas.getBoundingClientRect();
        swipe(swiped, (e.clientX - r.left) / r.width);
      };
      canvas.addEventListener("pointerdown", e => { canvas.setPointerCapture(e.pointerId); drag(e); });
      canvas.addEventListener("pointermove", drag);
    }
    return { figure, canvas };
  }

  function show(given) {
    pack = given;
    clearTimeout(late);
    root.classList.remove("wsss-late");
    root.setAttribute("aria-busy", "false");
    busy = false;
    const { spec, view } = pack;
    root.setAttribute("aria-label", spec.title);
    parts.question.textContent = spec.question;
    for (const c of spec.controls) {
      if (c.kind === "place") continue;
      if (!controls[c.name]) parts.controls.append((controls[c.name] = control(c)).box);
      const s = view.state[c.name];
      if (!waiting.has(c.name)) controls[c.name].set(s, s.texts || c.texts);
    }
    parts.panels.style.setProperty("--cols", spec.cols);
    const wanted = view.panels.map(p => p.title);
    for (const p of view.panels) {
      pictures[p.title] ||= picture(p);
      const { canvas, figure } = pictures[p.title];
      canvas.classList.toggle("wsss-small", p.shape[0] < 256);
      canvas.setAttribute("aria-label", p.alt);
      draw(canvas, p, pack, splits[p.title] ?? p.split);
      if (figure.parentNode !== parts.panels) parts.panels.append(figure);
    }
    for (const [title, { figure }] of Object.entries(pictures)) if (!wanted.includes(title)) figure.remove();
    parts.legend.replaceChildren(...view.legend.map(([name, rgb]) =>
      tag("li", {}, tag("span", { class: "wsss-swatch", style: `background:rgb(${rgb})` }), name)));
    if (view.panels.some(p => p.kind === "heat")) {
      const at = v => `rgb(${pack.arrays[pack.turbo].subarray(3 * v, 3 * v + 3).join()})`;
      const stops = [0, 51, 102, 153, 204, 255].map(at).join(",");
      parts.legend.append(tag("li", {}, spec.heat + " 0", tag("span", { class: "wsss-bar", style: `background:linear-gradient(90deg,${stops})` }), "1"));
    }
    parts.numbers.replaceChildren(...view.numbers.map(([name, text]) => tag("li", {}, `${name} `, tag("b", {}, text))));
    parts.curves.replaceChildren(...view.curves.map(curve));
    parts.caption.textContent = view.caption;
    parts.fixed.textContent = spec.fixed || "";
    parts.fixed.hidden = !spec.fixed;
    parts.error.textContent = pack.error || "";
    parts.error.hidden = !pack.error;
    if (waiting.size) next();
  }
  return { show, leave: watchTheme(root), fail: text => { parts.error.textContent = text; parts.error.hidden = false; } };
}

// %% Where views come from
function render({ model, el }) {
  let turn = 0;
  const panel = explorer(el, (name, value) => {
    model.set("asked", { turn: `${Date.now()}-${++turn}`, name, value });
    model.save_changes();
  });
  const take = () => unpack(model.get("packed")).then(panel.show, e => panel.fail(String(e)));
  model.on("change:packed", take);
  take();
  return () => { model.off("change:packed", take); panel.leave(); };
}

function same(c, a, b) {
  if (c.kind === "toggle") return a.value === b.value;
  if (c.kind !== "place") return a.text === b.text;
  const cell = s => s.value.map((f, k) => Math.min(Math.floor(f * s.grid[1 - k]), s.grid[1 - k] - 1)).join();
  return cell(a) === cell(b);
}

// How far a view is from a wish; what a page lacks, such as a class that another image does not have, is given up first.
function distance(spec, wish, name, view) {
  let sum = 0;
  for (const c of spec.controls) {
    if (c.kind === "swipe") continue;
    const [a, b] = [wish[c.name], view.state[c.name]];
    if (same(c, a, b)) continue;
    if (c.name === name) return Infinity;
    if (c.kind === "slider") sum += c.ids ? 100 : Math.abs(c.texts.indexOf(a.text) - c.texts.indexOf(b.text)) / c.texts.length;
    else sum += c.kind === "choice" ? (c.moves ? .01 : b.texts ? 1 + (b.texts.indexOf(b.text) > 0) : 100) : 10;
  }
  return sum;
}

async function start(el, text) {
  let page, view;
  const ask = (name, value) => {
    const c = page.spec.controls.find(c => c.name === name), now = view.state[name];
    const wish = { ...view.state, [name]: c.kind === "toggle" || c.kind === "place" ? { ...now, value }
      : { text: (now.texts || c.texts)[value] } };
    let best = Infinity;
    for (const v of page.views) {
      const d = distance(page.spec, wish, name, v);
      if (d < best) [best, view] = [d, v];
    }
    panel.show({ ...page, view });
  };
  const panel = explorer(el, ask);
  try { page = await unpack(Uint8Array.from(atob(text), c => c.charCodeAt(0))); }
  catch (e) { return panel.fail(`This browser cannot unpack the page (${e})`); }
  view = page.views[page.begin];
  panel.show({ ...page, view });
}

export default { render };
