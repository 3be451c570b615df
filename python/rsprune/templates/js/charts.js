// The plotting library, started when its first chart comes near, and the look that all charts share.

let library;

function plotly() {
  library ??= unpacked("plotly").then((text) => {
    const script = document.createElement("script");
    script.textContent = text;
    document.head.append(script);
    return window.Plotly;
  });
  return library;
}

const coarse = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, not the chart
const dark = matchMedia("(prefers-color-scheme: dark)");
const config = { displayModeBar: false, responsive: true, doubleClick: "reset", typesetMath: false };

function layout(more = {}) {
  const axis = { gridcolor: colour("rule"), zerolinecolor: colour("rule"), linecolor: colour("rule"), automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 8, t: 8, b: 8 },
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("ink") },
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("soft"), font: { color: colour("ink") }, align: "left" },
    dragmode: coarse ? false : "zoom", showlegend: false, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

// Calls draw(Plotly) when the element comes near, and again when the colour scheme changes.
function chart(element, draw) {
  const observer = new IntersectionObserver(async (entries) => {
    if (!entries.some((e) => e.isIntersecting)) return;
    observer.disconnect();
    const Plotly = await plotly();
    await draw(Plotly);
    element.dataset.drawn = "yes";
    dark.addEventListener("change", () => draw(Plotly));
  }, { rootMargin: "400px" });
  observer.observe(element);
}

// Plotly reads some HTML in labels: this is shown as it is written.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const shortened = (text, length = 22) => plain(text.length > length ? `${text.slice(0, length - 1)}…` : text);
