"""How heat maps look (of an audit, of gradient cosines): its part of the page's style sheet and script."""

HEAT_STYLE = """
.heat { margin-top: 0.9rem; } .pick { display: flex; flex-wrap: wrap; gap: 0.4rem; }
.pick button { font: inherit; font-size: 0.85rem; color: var(--text); background: transparent; cursor: pointer;
  border: 1px solid var(--line); border-radius: 99px; padding: 0.15rem 0.7rem; }
.pick button[aria-pressed="true"] { border-color: var(--accent); color: var(--accent); font-weight: 600; }
"""

HEAT_SCRIPT = """
function heat(box) {
  const data = JSON.parse(box.querySelector(".heatdata").textContent);
  const pressed = box.querySelector('.pick button[aria-pressed="true"]');
  const measure = data.measures[Number(pressed.dataset.measure)];
  const good = css("--card"), bad = css("--bad"), per = data.columns.length / data.groups.length;
  const unit = measure.unit ?? (measure.good_high ? " dB" : "%");
  const scale = measure.diverging ? [[0, bad], [0.5, good], [1, css("--accent")]]
    : measure.good_high ? [[0, bad], [1, good]] : [[0, good], [1, bad]];
  const small = { size: 11, color: css("--muted") };
  Plotly.react(box.querySelector(".heatmap"), [{ type: "heatmap", x: data.columns, y: data.rows, z: measure.values,
    zmin: measure.low, zmax: measure.high, xgap: 1, ygap: 1, hoverongaps: false,
    colorscale: scale, text: measure.text, texttemplate: measure.text && "%{text}",
    colorbar: { thickness: 10, outlinewidth: 0, ticksuffix: unit, tickfont: small, lenmode: "pixels", len: 220, y: 1,
      yanchor: "top" },
    hovertemplate: "<b>%{y}</b><br>%{x}<br>%{z:.4~g}" + unit + "<extra></extra>" }], {
    margin: { l: 10, r: 10, t: data.groups.length ? 92 : 10, b: 10 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: css("--grid"),
    font: { family: getComputedStyle(document.body).fontFamily, color: css("--text"), size: 12 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text"), size: 12 } },
    dragmode: false,
    xaxis: { side: "top", tickvals: data.columns, ticktext: data.formats, tickfont: small,
      tickangle: data.groups.length ? -50 : 0,
      showgrid: false, fixedrange: true, automargin: true },
    yaxis: { autorange: "reversed", tickfont: small, showgrid: false, automargin: true, fixedrange: true,
      tickmode: "array", tickvals: data.rows, ticktext: data.rows.map(name => name + " ") },
    annotations: data.groups.map((name, at) => ({ text: "<b>" + name + "</b>", x: (at + 0.5) * per - 0.5, y: 1,
      xref: "x", yref: "paper", yshift: 76, showarrow: false, font: { size: 12, color: css("--text") } })),
    shapes: data.groups.slice(1).map((name, at) => ({ type: "line", xref: "x", yref: "paper", y0: 0, y1: 1,
      x0: (at + 1) * per - 0.5, x1: (at + 1) * per - 0.5, line: { color: css("--muted"), width: 1.5 } })),
  }, { displayModeBar: false, responsive: true });
}
const heats = () => document.querySelectorAll(".heat").forEach(box => { if (open(box)) heat(box); });
document.querySelectorAll(".pick button").forEach(button => button.addEventListener("click", () => {
  button.parentElement.querySelectorAll("button").forEach(one => one.setAttribute("aria-pressed", one === button));
  heats();
}));
document.querySelectorAll("details").forEach(d => d.addEventListener("toggle", heats));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", heats);
heats();
"""
