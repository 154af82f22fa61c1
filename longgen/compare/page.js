"use strict";
// Plays the videos of one prompt in step, draws their curves and sorts the table. All text goes in as text, never as markup.
//
// A position is a frame of the fastest video shown; a tile shows the frame of its own that is on at that time. At rest each tile
// stands in the middle of exactly that frame. While playing, one clock runs by the wall and the tiles follow it by their rates;
// the clock waits for a tile that cannot keep up.

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const GAP = 12, CAPTION = 58; // pixels between tiles, and of the words under one
const MANY = 24; // tiles shown at first; above, one seed only
const FASTEST = 60; // frames a second
const DASHES = 8; // ways to dash a line, which tell seeds apart
const STRIP = { side: 192, widest: 8000, gap: 6, line: 20 }; // pixels of a picture of frames
const LAG = 0.15; // seconds that a tile may be behind the clock

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const limited = (value, low, high) => Math.min(Math.max(value, low), high);
const swatch = (mark) => draw("svg", { class: `swatch ${mark}`, "aria-hidden": "true" }, draw("line", { x1: 1, x2: 25, y1: 5, y2: 5 }));

// --- tiles

function label(cell) {
  const seed = data.seeds[cell.seed];
  return seed === null ? data.presets[cell.preset].name : `${data.presets[cell.preset].name}, seed ${seed}`;
}

const addresses = new Map();

function address(cell) { // of its video: a part of this page, or a file beside it
  if (cell.link) return cell.link;
  if (!addresses.has(cell.name)) {
    const bytes = Uint8Array.from(atob(by(`video-${cell.name}`).textContent), (letter) => letter.charCodeAt(0));
    addresses.set(cell.name, URL.createObjectURL(new Blob([bytes], { type: cell.type })));
  }
  return addresses.get(cell.name);
}

function markOf(cell, seeds) { // colours tell presets apart; dashes tell seeds apart where several are shown
  const { color, dash, mark } = data.presets[cell.preset];
  return seeds < 2 ? mark : `k${color} d${(dash * data.seeds.length + cell.seed) % DASHES} thin`;
}

class Tile {
  constructor(cell, seeds) {
    this.cell = cell;
    this.mark = markOf(cell, seeds);
    this.broken = Boolean(cell.error);
    this.video = null;
    const seed = data.seeds[cell.seed];
    const caption = make("figcaption", {}, make("span", { class: "label", title: label(cell) }, swatch(this.mark), data.presets[cell.preset].name));
    caption.append(make("span", { class: "cost" }, [seed === null ? "" : `seed ${seed}`, cell.cost].filter(Boolean).join(" · ")));
    this.node = make("figure", { class: `tile ${this.mark}` }, this.broken ? this.told(cell.error) : this.screen(), caption);
    this.node.addEventListener("pointerenter", () => highlight(this));
    this.node.addEventListener("pointerleave", () => highlight(null));
  }

  screen() {
    this.video = make("video", { preload: "auto", playsinline: "", "aria-hidden": "true", tabindex: "-1" });
    this.video.muted = true; // the attribute alone does not do it
    this.video.addEventListener("error", () => this.fail("This browser cannot play the video."));
    for (const event of ["loadedmetadata", "seeked"]) this.video.addEventListener(event, () => this.settle());
    this.video.src = address(this.cell);
    const button = make("button", { class: "screen", "aria-pressed": "false", "aria-label": `Enlarge ${label(this.cell)}` }, this.video);
    button.addEventListener("click", () => enlarge(this));
    return button;
  }

  told(error) {
    return make("div", { class: "screen", role: "note" }, error);
  }

  fail(error) {
    if (this.broken) return;
    this.broken = true;
    this.node.replaceChild(this.told(error), this.node.firstChild);
    arrange();
  }

  end() {
    return this.cell.times ? this.cell.times[this.cell.frames] : this.cell.frames / this.cell.fps;
  }

  rate() { // of frames a second, at which none is missed; up to FASTEST where they come at varying intervals
    const times = this.cell.times;
    if (!times) return this.cell.fps;
    return Math.max(this.cell.fps, Math.min(FASTEST, 1 / Math.min(...times.slice(1).map((time, frame) => time - times[frame]))));
  }

  number(seconds) { // of the frame that is on at that time, on beyond the last one
    const times = this.cell.times;
    if (!times) return Math.floor(seconds * this.cell.fps + 1e-6);
    let low = 0, high = times.length; // the first time that is later
    while (low < high) {
      const middle = (low + high) >> 1;
      if (times[middle] <= seconds + 1e-6) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  frameAt(seconds) {
    return limited(this.number(seconds), 0, this.cell.frames - 1);
  }

  middle(frame) { // of the time for which it is on
    const times = this.cell.times;
    return times ? (times[frame] + times[frame + 1]) / 2 : (frame + 0.5) / this.cell.fps;
  }

  settle() { // at rest, the middle of the frame to be shown; a seek under way is waited for
    if (this.broken || clock.playing || this.video.readyState < 1 || this.video.seeking) return;
    const wanted = this.middle(this.frameAt(seconds(clock.frame)));
    if (Math.abs(this.video.currentTime - wanted) > 1e-4) this.video.currentTime = wanted;
  }

  close() {
    if (!this.video) return;
    this.broken = true; // what is left of its events means nothing
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }
}

let tiles = [], large = null, near = null;

function show() { // the tiles of the chosen prompt and seed, in place of those before
  const prompt = Number(by("prompt").value), seed = Number(by("seed").value); // a seed of -1: all
  const shown = data.cells.filter((cell) => cell.prompt === prompt && (seed < 0 || cell.seed === seed));
  shown.sort((one, other) => one.seed - other.seed || one.preset - other.preset);
  pause();
  for (const tile of tiles) tile.close();
  large = near = null;
  const seeds = new Set(shown.map((cell) => cell.seed)).size;
  tiles = shown.map((cell) => new Tile(cell, seeds));
  const playable = tiles.filter((tile) => !tile.broken);
  clock.rate = Math.max(1, ...playable.map((tile) => tile.rate()));
  clock.frames = Math.max(1, ...playable.map((tile) => Math.ceil(tile.end() * clock.rate - 1e-6)));
  by("seek").max = clock.frames - 1;
  by("text").replaceChildren(...about(data.prompts[prompt]));
  by("tiles").replaceChildren(...tiles.map((tile) => tile.node));
  by("controls").hidden = playable.length === 0;
  by("frames").hidden = playable.length === 0 || shown.some((cell) => cell.link); // of a file beside the page no pixel can be read
  arrange();
  curves();
  go(clock.frame);
}

function about(prompt) {
  const links = prompt.links.flatMap(([name, address]) => [" ", make("a", { href: address, class: "soft" }, name)]);
  return [...(prompt.text === null ? [] : [make("bdi", {}, prompt.text)]), ...links];
}

function arrange() { // tiles as large as the window allows; small videos enlarged so that their pixels stay square and alike
  if (!tiles.length) return;
  const [width, height] = (tiles.find((tile) => !tile.broken) ?? tiles[0]).cell.size;
  const across = width || 16, down = height || 9;
  const room = by("tiles").clientWidth, budget = Math.max(360, innerHeight * 0.66);
  const least = Math.min(room, room < 560 ? (room - GAP) / 2 : 128);
  let best = { columns: 1, side: 0 };
  for (let columns = 1; columns <= tiles.length; columns++) {
    const wide = (room - (columns - 1) * GAP) / columns;
    if (columns > 1 && wide < least) break;
    const high = (budget / Math.ceil(tiles.length / columns) - CAPTION) * across / down;
    const side = Math.min(wide, Math.max(high, Math.min(wide, least)));
    if (side >= best.side) best = { columns, side };
  }
  const whole = (w, most) => (most > w ? Math.floor(most * devicePixelRatio / w) * w / devicePixelRatio : Math.floor(most));
  const side = whole(across, best.side);
  let columns = limited(Math.floor((room + GAP) / (side + GAP)), 1, tiles.length);
  const presets = new Set(tiles.map((tile) => tile.cell.preset)).size;
  if (columns > presets) columns -= columns % presets; // seeds below each other
  by("tiles").style.setProperty("--columns", columns);
  by("tiles").style.setProperty("--tile", `${side}px`);
  for (const tile of tiles) {
    const [w, h] = tile.broken || !tile.cell.size[0] ? [across, down] : tile.cell.size;
    const most = Math.min(room, innerHeight * 0.7 * w / h);
    tile.node.style.setProperty("--large", `${whole(w, most)}px`);
    tile.node.firstChild.style.aspectRatio = `${w} / ${h}`;
    tile.node.firstChild.classList.toggle("pixels", w < side || (tile === large && w < most));
  }
}

function enlarge(tile) { // or makes it small again
  large = tile === large ? null : tile;
  for (const other of tiles) {
    other.node.classList.toggle("large", other === large);
    other.node.firstChild.setAttribute("aria-pressed", other === large);
  }
  arrange();
}

function highlight(tile) {
  near = tile;
  for (const other of tiles) {
    const faint = near !== null && other !== near;
    for (const node of [other.line, other.entry]) node?.classList.toggle("faint", faint);
  }
  for (const node of by("chart").querySelectorAll("[data-preset]")) {
    const own = near !== null && Number(node.dataset.preset) === near.cell.preset;
    node.classList.toggle("faint", near !== null && !own);
    node.classList.toggle("near", own);
  }
}

// --- frames of all tiles as one picture

function still(tile) { // resolves when the tile stands at its frame, or after two seconds
  return new Promise((resolve) => {
    const end = performance.now() + 2000;
    const look = () => {
      const wanted = tile.middle(tile.frameAt(seconds(clock.frame))), { video } = tile;
      const there = !video.seeking && video.readyState > 1 && Math.abs(video.currentTime - wanted) < 1e-3;
      if (tile.broken || there || performance.now() > end) requestAnimationFrame(resolve); // by then it is painted
      else setTimeout(look, 20);
    };
    look();
  });
}

async function strip(moments) { // a canvas: tiles beside each other at this frame, or below each other at several moments
  const shown = tiles.filter((tile) => !tile.broken), before = clock.frame, { gap, line } = STRIP;
  const at = moments < 2 ? [before] : Array.from({ length: moments }, (_, index) => Math.round(index * (clock.frames - 1) / (moments - 1)));
  const [across, down] = moments < 2 ? [shown.length, 1] : [at.length, shown.length];
  const width = Math.max(...shown.map((tile) => tile.cell.size[0])), height = Math.max(...shown.map((tile) => tile.cell.size[1]));
  const room = (STRIP.widest - gap) / across - gap;
  const factor = width > room ? room / width : Math.max(1, Math.floor(STRIP.side / width));
  const [wide, high] = [Math.round(width * factor), Math.round(height * factor)];
  const canvas = make("canvas", { width: gap + across * (wide + gap), height: line + down * (line + high) + gap });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = factor < 1;
  context.font = "13px system-ui, sans-serif";
  const write = (text, left, top) => {
    context.fillStyle = "#000";
    context.fillText(text, left, top, wide); // squeezed where it is too long
  };
  for (const [column, frame] of at.entries()) {
    go(frame);
    await Promise.all(shown.map(still));
    for (const [row, tile] of shown.entries()) {
      const left = gap + (moments < 2 ? row : column) * (wide + gap), top = line + (moments < 2 ? 0 : row) * (line + high);
      if (column === 0) write(label(tile.cell), left, top + 14);
      if (moments > 1 ? row === 0 : row + column === 0) write(`${(frame / clock.rate).toFixed(2)} s`, left, 14);
      context.drawImage(tile.video, left, top + line, tile.cell.size[0] * factor, tile.cell.size[1] * factor);
    }
  }
  go(before);
  return canvas;
}

async function save() {
  pause();
  const moments = Number(by("moments").value), prompt = data.prompts[Number(by("prompt").value)].text ?? "videos";
  by("save").disabled = true;
  const canvas = await strip(moments);
  const file = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const name = prompt.toLowerCase().replace(/[^\p{L}\p{M}\p{N}]+/gu, "-").slice(0, 60).replace(/^-|-$/g, "") || "videos";
  const link = make("a", { href: URL.createObjectURL(file), download: `${name}-${moments < 2 ? `frame-${clock.frame}` : `${moments}-moments`}.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  by("save").disabled = false;
}

// --- clock

const clock = { frame: 0, frames: 1, rate: 1, playing: false, speed: 1, loop: true, seconds: 0, last: 0 };
const seconds = (frame) => (frame + 0.5) / clock.rate;

function go(frame) { // to that frame, in every tile
  clock.frame = limited(Math.round(frame), 0, clock.frames - 1);
  clock.seconds = seconds(clock.frame);
  for (const tile of tiles) {
    if (tile.broken) continue;
    if (clock.playing) tile.video.currentTime = Math.min(clock.seconds, tile.end());
    else tile.settle();
  }
  tell();
}

function play() {
  if (clock.playing || !tiles.some((tile) => !tile.broken)) return;
  if (clock.frame === clock.frames - 1) go(0);
  clock.playing = true;
  clock.last = performance.now();
  requestAnimationFrame(tick);
  tell();
}

function pause() {
  if (!clock.playing) return;
  clock.playing = false;
  for (const tile of tiles) tile.video?.pause();
  go(clock.frame);
}

function tick(now) {
  if (!clock.playing) return;
  const before = clock.seconds, running = tiles.filter((tile) => !tile.broken && !tile.video.ended && before < tile.end());
  clock.seconds += limited((now - clock.last) / 1000, 0, 0.5) * clock.speed;
  clock.last = now;
  for (const { video } of running) clock.seconds = Math.max(before, Math.min(clock.seconds, video.currentTime + LAG * clock.speed));
  const end = clock.frames / clock.rate;
  if (clock.seconds >= end && clock.loop) {
    go(0);
  } else if (clock.seconds >= end) {
    clock.frame = clock.frames - 1;
    return pause();
  }
  for (const tile of tiles) if (!tile.broken) follow(tile);
  clock.frame = limited(Math.floor(clock.seconds * clock.rate), 0, clock.frames - 1);
  tell();
  requestAnimationFrame(tick);
}

function follow({ video }) {
  const behind = clock.seconds - video.currentTime;
  const rate = clock.speed * limited(Math.round((1 + 2 * behind) * 20) / 20, 0.5, 1.5); // steps of 5%: each change costs a little
  if (video.playbackRate !== rate) video.playbackRate = rate;
  if (video.paused && !video.ended && !video.seeking) video.play().catch(() => {}); // refused where pause() comes first
}

function tell() {
  const at = clock.frame;
  by("seek").value = at;
  by("seek").setAttribute("aria-valuetext", `frame ${at} of ${clock.frames - 1}`);
  by("position").textContent = `frame ${at} / ${clock.frames - 1} · ${(at / clock.rate).toFixed(2)} s`;
  by("play").textContent = clock.playing ? "pause" : "play";
  point();
}

const toggle = () => (clock.playing ? pause() : play());

function step(by) {
  pause();
  go(clock.frame + by);
}

// --- curves

let plot = null; // how the chart lies: { left, width, cursor, name }

function range(values) { // nice ends and a nice step for an axis
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return { low: 0, high: 1, step: 0.5 };
  if (low > 0 && low < high / 2) low = 0;
  if (low === high) [low, high] = [Math.min(low, 0), low > 0 ? high : high + 1];
  const size = nice((high - low) / 5);
  return { low: Math.floor(low / size + 1e-9) * size, high: Math.ceil(high / size - 1e-9) * size, step: size };
}

function nice(size) {
  const power = 10 ** Math.floor(Math.log10(size));
  return [1, 2, 5, 10].find((part) => part * power >= size * 0.999) * power;
}

const written = (value, step) => value.toFixed(limited(-Math.floor(Math.log10(step) + 1e-9), 0, 6)).replace("-", "−");

function curves() {
  const name = by("curve").value, drawn = tiles.filter((tile) => tile.cell.curves[name]?.some((value) => value !== null));
  for (const tile of tiles) tile.line = tile.entry = tile.value = null;
  document.querySelector(".curves").hidden = !name;
  if (!name) return;
  const width = by("chart").clientWidth, high = 190, left = 46, right = 8, top = 8;
  const length = clock.frames / clock.rate, axis = range(drawn.flatMap((tile) => tile.cell.curves[name]));
  const x = (time) => left + (width - left - right) * time / length;
  const y = (value) => top + high * (axis.high - value) / (axis.high - axis.low);
  const presets = [...new Set(tiles.map((tile) => tile.cell.preset))];
  const seamed = presets.map((preset) => [preset, [...new Set(tiles.filter((tile) => tile.cell.preset === preset && !tile.broken)
    .flatMap((tile) => tile.cell.seams.map((frame) => frame / tile.cell.fps)))]]).filter(([, times]) => times.length);
  const foot = top + high + 4 + seamed.length * 6;
  const svg = draw("svg", { height: foot + 20, role: "img", "aria-label": `${spoken(name)} of each frame; the position above moves its cursor` });
  for (let tick = 0; axis.low + tick * axis.step <= axis.high + axis.step / 2; tick++) {
    const value = axis.low + tick * axis.step;
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, written(value, axis.step)));
  }
  const apart = nice(length / limited(width / 90, 2, 12));
  for (let tick = 0; tick * apart <= length; tick++) {
    svg.append(draw("text", { x: x(tick * apart), y: foot + 15, "text-anchor": tick ? "middle" : "start" },
      written(tick * apart, apart) + (tick ? "" : " s")));
  }
  seamed.forEach(([preset, times], row) => {
    for (const time of times) {
      const own = { x1: x(time), x2: x(time), "data-preset": preset }, mark = data.presets[preset].mark;
      svg.append(draw("line", { class: `seam ${mark}`, y1: top, y2: top + high, ...own }));
      svg.append(draw("line", { class: `tick ${mark}`, y1: top + high + 3 + row * 6, y2: top + high + 8 + row * 6, ...own },
        draw("title", {}, `${data.presets[preset].name}: seam at ${time.toFixed(2)} s`)));
    }
  });
  for (const tile of drawn) {
    let path = "", gap = true;
    tile.cell.curves[name].forEach((value, frame) => {
      if (value !== null) path += `${gap ? "M" : "L"}${x(tile.middle(frame)).toFixed(1)} ${y(value).toFixed(1)}`;
      gap = value === null;
    });
    tile.line = draw("path", { class: `line ${tile.mark}`, d: path });
    svg.append(tile.line);
  }
  const cursor = draw("line", { class: "cursor", y1: top - 4, y2: foot });
  svg.append(cursor);
  by("chart").replaceChildren(svg);
  by("unit").textContent = data.curves[name];
  by("legend").replaceChildren(...drawn.map((tile) => {
    tile.value = make("b");
    tile.entry = make("span", { class: "entry", title: label(tile.cell) }, swatch(tile.mark), make("span", { class: "label" }, label(tile.cell)), tile.value);
    tile.entry.addEventListener("pointerenter", () => highlight(tile));
    tile.entry.addEventListener("pointerleave", () => highlight(null));
    return tile.entry;
  }), ...(seamed.length ? [make("span", { class: "soft" }, `marks: seams of ${seamed.map(([preset]) => data.presets[preset].name).join(", ")}`)] : []));
  plot = { name, cursor, x, step: axis.step / 100, left, width: width - left - right };
  const seek = (event) => go((event.clientX - svg.getBoundingClientRect().left - left) / plot.width * clock.frames - 0.5);
  svg.addEventListener("pointerdown", (event) => {
    svg.setPointerCapture(event.pointerId);
    seek(event);
  });
  svg.addEventListener("pointermove", (event) => {
    if (svg.hasPointerCapture(event.pointerId)) seek(event);
  });
  point();
}

const spoken = (name) => name.replaceAll("_", " ");

function point() { // the cursor and the values at it
  if (!plot) return;
  const at = plot.x(seconds(clock.frame));
  plot.cursor.setAttribute("x1", at);
  plot.cursor.setAttribute("x2", at);
  for (const tile of tiles) {
    if (!tile.value) continue;
    const own = tile.number(seconds(clock.frame)), value = tile.cell.curves[plot.name][own] ?? null;
    tile.value.textContent = value === null ? "–" : written(value, plot.step);
  }
}

// --- table

function sort(head) {
  const table = by("table"), heads = [...head.parentNode.children], column = heads.indexOf(head);
  const first = head.firstElementChild.dataset.first, before = head.getAttribute("aria-sort");
  const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1, rows = [...table.tBodies[0].rows];
  const value = (row) => row.cells[column].dataset.order;
  rows.sort((one, other) => { // what has no number stays last, either way
    if (value(one) === undefined || value(other) === undefined) return (value(one) === undefined) - (value(other) === undefined);
    return sign * (value(one) - value(other));
  });
  table.tBodies[0].append(...rows);
}

// --- beginning

function choices(select, names, all) {
  select.append(...all, ...names.map((name, index) => make("option", { value: index }, name)));
  select.closest("label").hidden = names.length < 2;
}

function keys(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const inside = (selector) => event.target.closest?.(selector);
  if (event.key === " " && !inside("button, select, summary, a, input[type=checkbox]")) toggle();
  else if (event.key === "ArrowLeft" && !inside("select, input[type=range], .scroll")) step(-1);
  else if (event.key === "ArrowRight" && !inside("select, input[type=range], .scroll")) step(1);
  else if (event.key === "Escape" && large) enlarge(large);
  else return;
  event.preventDefault();
}

function fit() {
  arrange();
  curves();
  by("table").style.setProperty("--name", `${by("table").querySelector(".name").offsetWidth}px`);
}

const oneLine = (text) => (text === null ? "no prompt" : text.replace(/\s+/g, " ").slice(0, 120));
choices(by("prompt"), data.prompts.map(({ text }) => oneLine(text)), []);
choices(by("seed"), data.seeds.map((seed) => (seed === null ? "none" : String(seed))), [make("option", { value: -1 }, "all")]);
by("curve").append(...Object.keys(data.curves).map((name) => make("option", { value: name }, spoken(name))));
document.querySelector(".choose").hidden = data.prompts.length < 2 && data.seeds.length < 2;
if (data.cells.filter((cell) => cell.prompt === 0).length > MANY) by("seed").value = 0;

by("prompt").addEventListener("change", show);
by("seed").addEventListener("change", show);
by("curve").addEventListener("change", curves);
by("play").addEventListener("click", toggle);
by("back").addEventListener("click", () => step(-1));
by("forward").addEventListener("click", () => step(1));
by("save").addEventListener("click", save);
by("seek").addEventListener("input", () => go(Number(by("seek").value)));
by("speed").addEventListener("change", () => (clock.speed = Number(by("speed").value)));
by("loop").addEventListener("change", () => (clock.loop = by("loop").checked));
for (const head of by("table").tHead.rows[0].cells) head.firstElementChild.addEventListener("click", () => sort(head));
document.addEventListener("keydown", keys);
document.addEventListener("visibilitychange", () => document.hidden && pause());
addEventListener("resize", fit);
show();
fit();
