// Draws every chart of the page, in the colours of the reader's scheme, and light on paper.
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function theme(isDark) {
  const ink = isDark ? "#e6e9ed" : "#1b1f24", quiet = isDark ? "#a3acb6" : "#57606a";
  const grid = isDark ? "#2b323a" : "#e4e8ec", font = "system-ui, sans-serif";
  return {
    background: "transparent", font,
    view: { stroke: null },
    axis: { labelColor: quiet, titleColor: ink, gridColor: grid, domainColor: quiet, tickColor: quiet, titleFontWeight: 500, titlePadding: 8, labelOverlap: true, labelSeparation: 6 },
    legend: { labelColor: ink, titleColor: ink, orient: "top", symbolOpacity: 1, layout: { top: { direction: "vertical", anchor: "start" } } },
    text: { color: ink }, title: { color: ink },
  };
}

async function draw(isDark) {
  for (const place of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    const options = { actions: false, renderer: place.dataset.renderer, config: theme(isDark), tooltip: { theme: isDark ? "dark" : "light" } };
    await vegaEmbed(place, spec, options);
    place.dataset.drawn = "yes";
  }
  document.body.dataset.drawn = isDark ? "dark" : "light";
}

draw(dark.matches);
dark.addEventListener("change", (event) => draw(event.matches));
window.addEventListener("beforeprint", () => draw(false));
window.addEventListener("afterprint", () => draw(dark.matches));
