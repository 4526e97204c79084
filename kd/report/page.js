// Draws the interactive twin of each picture in its place. Without this script the page shows the pictures.
"use strict";
(() => {
  const palette = JSON.parse(document.getElementById("palette").textContent);
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };
  const waiting = [];
  let drawn = 0;

  // the colours of the light scheme are names of those of the reader's scheme
  function coloured(value, style) {
    if (typeof value === "string") return value in palette ? style.getPropertyValue(palette[value]).trim() : value;
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  }

  function hasWebGL() {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
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
    }
    box.classList.add("drawn");
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

  const seen = (box) => !box.parentElement.closest("details:not([open])");
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => {
      if (details.open) request([...details.querySelectorAll(".plotted:not(.drawn)")].filter(seen));
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    request([...document.querySelectorAll(".plotted.drawn")]);
  });
  request([...document.querySelectorAll(".plotted")].filter(seen));
})();
