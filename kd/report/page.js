// Draws the interactive twin of each picture in its place. Without this script the page shows the pictures.
"use strict";
(() => {
  const palette = JSON.parse(document.getElementById("palette").textContent);
  const canHover = matchMedia("(hover: hover)").matches;
  const config = {
    displaylogo: false,
    showSendToCloud: false,
    displayModeBar: canHover ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };
  const waiting = [];
  const sizes = new ResizeObserver((entries) => {
    const changed = entries.map((entry) => entry.target).filter((place) => {
      return place.clientWidth > 0 && place.clientWidth !== Number(place.dataset.width);
    });
    request(changed.map((place) => place.parentElement));
  });
  let drawn = 0;

  const texts = new Set(["text", "ticktext", "customdata", "name", "label"]); // these may hold anything

  // a colour of the light scheme stands for the same one of the reader's scheme
  function coloured(value, style) {
    if (typeof value === "string") {
      return value.replace(/#[0-9a-f]{6}/g, (one) => style.getPropertyValue(palette[one] ?? "").trim() || one);
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    const pairs = Object.entries(value);
    return Object.fromEntries(pairs.map(([key, item]) => [key, texts.has(key) ? item : coloured(item, style)]));
  }

  function hasWebGL() {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  }

  // a legend of many rows gets a place of its own, not the curves'
  function height({ data, layout }, width) {
    const lengths = data.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => trace.name.length);
    if (lengths.length < 2 || layout.showlegend === false) return layout.height;
    const columns = Math.max(1, Math.floor((width - 66) / (50 + 7 * Math.max(...lengths))));
    return layout.height + 28 * (Math.ceil(lengths.length / columns) - 1);
  }

  async function draw(box) {
    const twin = JSON.parse(box.querySelector("script").textContent);
    if (twin.data.some((trace) => trace.type === "parcoords") && !hasWebGL()) return;
    const { data, layout } = coloured(twin, getComputedStyle(document.documentElement));
    let place = box.querySelector(".plot");
    if (!place) {
      place = document.createElement("div");
      place.className = "plot";
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", box.querySelector("svg").getAttribute("aria-label"));
      box.append(place);
      drawn += 1;
      sizes.observe(place);
    }
    box.classList.add("drawn");
    place.dataset.width = place.clientWidth;
    layout.width = place.clientWidth;
    if (!canHover) layout.dragmode = false; // a finger scrolls the page
    layout.height = height(twin, place.clientWidth);
    const image = { toImageButtonOptions: { format: "svg", filename: box.dataset.name } };
    await Plotly.react(place, data, layout, { ...config, ...image });
  }

  // one at a time, so that the page can be scrolled meanwhile; what a closed part hides has no size yet
  async function work() {
    document.body.dataset.figures = "drawing";
    while (waiting.length) {
      const box = waiting.shift();
      try {
        await draw(box);
      } catch (error) {
        box.classList.remove("drawn");
        document.body.dataset.failed = `${box.dataset.name}: ${error}`;
      }
      await new Promise((resume) => setTimeout(resume));
    }
    document.body.dataset.figures = `${drawn} drawn`;
  }

  function request(boxes) {
    const idle = waiting.length === 0 && document.body.dataset.figures !== "drawing";
    for (const box of boxes) if (!waiting.includes(box)) waiting.push(box);
    if (idle) work();
  }

  // what is folded up is drawn once it comes into sight
  const observer = new IntersectionObserver((entries) => {
    const seen = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    for (const box of seen) observer.unobserve(box);
    if (seen.length) request(seen);
  });
  const visible = (box) => box.checkVisibility();
  const boxes = [...document.querySelectorAll(".plotted")];
  for (const box of boxes) if (!visible(box)) observer.observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    request(boxes.filter((box) => box.classList.contains("drawn")));
  });
  request(boxes.filter(visible));
})();
