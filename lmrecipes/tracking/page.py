"""How the report looks: its style sheet and its script, both written into the page."""

STYLE = """
:root { color-scheme: light dark;
  --back: #f7f7f5; --card: #ffffff; --text: #1d2025; --muted: #5c636e; --line: #e3e4e6; --grid: #eceded;
  --accent: #0072b2; --good: #00785a; --bad: #b04a00; --wait: #d58a00;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #b4568f; --s4: #c48a00; --s5: #6a5acd; }
@media (prefers-color-scheme: dark) { :root {
  --back: #121418; --card: #1a1d23; --text: #e8eaed; --muted: #9ea6b1; --line: #2c313a; --grid: #262a32;
  --accent: #56b4e9; --good: #3dc79b; --bad: #ff9a5c; --wait: #f0b93a;
  --s0: #56b4e9; --s1: #ff8a4c; --s2: #3dc79b; --s3: #e79bc6; --s4: #f0c14b; --s5: #a99bff; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-size: 15px; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1, h2, h3 { line-height: 1.2; margin: 0; font-weight: 650; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; } h2 { font-size: 1.25rem; margin: 3rem 0 0.25rem; } h3 { font-size: 0.95rem; }
p { margin: 0.35rem 0; } .muted, .note, h3 small, .muted small { color: var(--muted); }
.note { font-size: 0.9rem; max-width: 85ch; }
h3 small { font-weight: 400; margin-left: 0.4em; letter-spacing: 0; }
.kicker { color: var(--accent); font-weight: 600; font-size: 0.85rem; margin: 0 0 0.4rem; }
.lead { font-size: 1.05rem; max-width: 75ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.75rem; margin: 1.5rem 0 0; }
.tile { padding: 0.7rem 0.9rem; } .tile b { display: block; font-size: 1.25rem; font-weight: 620; line-height: 1.3;
  font-variant-numeric: tabular-nums; } .tile span { color: var(--muted); font-size: 0.83rem; }
.status { display: inline-block; padding: 0.05rem 0.6rem; border-radius: 99px; border: 1px solid currentColor;
  font-size: 0.83rem; font-weight: 600; color: var(--good); white-space: nowrap; } .status.open { color: var(--bad); }
.scroll { overflow-x: auto; margin-top: 0.9rem; padding: 0.25rem 0.5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.5rem 0.7rem; border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.85rem; line-height: 1.3; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; } td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
th.n { min-width: 6.2rem; } th.tight { min-width: 0; } td small, th small { color: var(--muted); font-weight: 400;
  font-size: 0.8rem; display: block; } td .up { color: var(--good); } td .down { color: var(--bad); }
td.long { min-width: 200px; } td.best { font-weight: 680; }
.key { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.45em;
  background: var(--c, var(--text)); border: 2px solid var(--c, var(--text)); vertical-align: -0.02em; }
.key.hollow { background: transparent; --c: var(--muted); } .key.square { border-radius: 1px; }
.key.diamond { border-radius: 1px; transform: rotate(45deg) scale(0.9); }
td.where { min-width: 190px; width: 26%; vertical-align: middle; }
.track { position: relative; display: block; height: 1.1em; }
.track::before { content: ""; position: absolute; left: 0; right: 0; top: 50%; border-top: 2px solid var(--line); }
.track .key { position: absolute; top: 50%; margin: -0.4em 0 0 -0.4em; width: 0.8em; height: 0.8em; }
.track .hollow { background: var(--card); }
.legend { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 0.4rem; padding: 0.6rem 0;
  margin-top: 2.2rem; background: var(--back); }
.legend button { font: inherit; font-size: 0.87rem; color: var(--text); background: var(--card); cursor: pointer;
  border: 1px solid var(--line); border-radius: 99px; padding: 0.2rem 0.75rem; max-width: 100%;
  overflow-wrap: anywhere; }
.legend button[aria-pressed="false"] { opacity: 0.45; text-decoration: line-through; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.legend + section h2 { margin-top: 0.6rem; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0.9rem; margin-top: 0.9rem; }
.charts > :first-child:nth-last-child(odd) { grid-column: 1 / -1; }
figure { margin: 0; min-width: 0; padding: 0.85rem 0.9rem 0.4rem; } .plot { height: 270px; }
details { margin-top: 0.9rem; } summary { cursor: pointer; font-weight: 600; padding: 0.3rem 0; }
pre { margin: 0; overflow-x: auto; font: 0.82rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.command { display: flex; gap: 0.8rem; align-items: flex-start; margin-bottom: 0.9rem; padding-bottom: 0.9rem;
  border-bottom: 1px solid var(--line); }
.command pre { flex: 1; min-width: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.copy { font: inherit; font-size: 0.82rem; color: var(--text); background: transparent; border: 1px solid var(--line);
  border-radius: 6px; padding: 0.15rem 0.6rem; cursor: pointer; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 0.7rem 1.2rem; margin: 0; }
dt { color: var(--muted); font-size: 0.83rem; } dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: flex; height: 1.4rem; border-radius: 5px; overflow: hidden; margin: 0.6rem 0 0.4rem; }
.bar i { display: block; min-width: 2px; } .run { margin-top: 0.9rem; } .run h3 { margin-bottom: 0.6rem; }
h3.task { margin-top: 1.4rem; } dl.sample { grid-template-columns: minmax(6.5rem, auto) minmax(0, 1fr);
  gap: 0.6rem 1.1rem; margin-top: 0.7rem; } .sample dt { text-align: right; padding-top: 0.1rem; }
.sample dd { white-space: pre-wrap; font: 0.85rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.sample dd:nth-of-type(2) { color: var(--good); } .sample.grows dd:last-of-type { font-weight: 600; }
details.long { margin: 0; } details.long > summary { font-weight: inherit; padding: 0; }
details.long[open] > summary { height: 1.5em; overflow: hidden; color: var(--muted); }
footer { margin-top: 4rem; color: var(--muted); font-size: 0.85rem; }
@media (max-width: 760px) { main { padding: 1.4rem 0.9rem 3rem; } h1 { font-size: 1.45rem; }
  .charts { grid-template-columns: minmax(0, 1fr); } .plot { height: 230px; } td.where, th.where { display: none; }
  th, td { padding: 0.45rem 0.5rem; } .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .command { flex-direction: column; }
  dl { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .legend { flex-wrap: nowrap; overflow-x: auto; } .legend button { flex: none; max-width: none; } }
@media print { .legend { position: static; } .copy { display: none; } .card, figure { break-inside: avoid; } }
"""

SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent);
const hidden = new Set();
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = series => series < 0 ? css("--text") : css("--s" + series % 6);
const touch = matchMedia("(pointer: coarse)").matches;

function trace(line) {
  const raw = line.style === "raw", points = line.style === "points", target = line.style === "target";
  const dash = target ? "dash" : line.series >= 6 ? "dot" : "solid";
  return { type: "scatter", name: line.name, x: line.x, y: line.y, showlegend: false,
    mode: points ? "lines+markers" : "lines", opacity: raw ? 0.28 : 1, visible: !hidden.has(line.series),
    hoverinfo: raw ? "skip" : "x+y+name", marker: { size: 5, color: colour(line.series) },
    line: { color: colour(line.series), width: raw ? 1 : target ? 1.5 : 2, dash, shape: "linear" } };
}

function draw(plot) {
  const chart = charts[plot.dataset.chart], percent = chart.percent;
  const small = chart.lines.every(line => line.y.every(value => Math.abs(value) < 0.01));  // 3e-4, not 300µ
  const axis = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true,
    tickfont: { size: 11.5, color: css("--muted") }, fixedrange: touch };
  Plotly.react(plot, chart.lines.map(trace), {
    margin: { l: 46, r: 12, t: 10, b: 34 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: css("--text"), size: 12 },
    hovermode: "x unified", hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), namelength: 40,
      font: { color: css("--text"), size: 12 } },
    dragmode: touch ? false : "zoom",
    xaxis: { ...axis, showgrid: false, ticks: "outside", ticklen: 4, tickcolor: css("--line"), hoverformat: ",d",
      rangemode: "tozero", spikecolor: css("--muted"), spikethickness: 1, spikedash: "dot",
      unifiedhovertitle: { text: "step %{x}" } },
    yaxis: { ...axis, nticks: 6, tickformat: percent ? ".2~%" : "", hoverformat: percent ? ".2~%" : ",.4~g",
      exponentformat: small ? "e" : "SI", rangemode: chart.from_zero ? "tozero" : "normal",
      type: chart.log ? "log" : "linear" },
  }, { displayModeBar: false, responsive: true });
}

const open = plot => !plot.closest("details:not([open])");
const drawAll = () => document.querySelectorAll(".plot").forEach(plot => { if (open(plot)) draw(plot); });
document.querySelectorAll("details").forEach(d => d.addEventListener("toggle", () => {
  if (d.open) d.querySelectorAll(".plot").forEach(draw);
}));
document.querySelectorAll(".legend button").forEach(button => button.addEventListener("click", () => {
  const series = Number(button.dataset.series);
  if (!hidden.delete(series)) hidden.add(series);
  button.setAttribute("aria-pressed", String(!hidden.has(series)));
  drawAll();
}));
document.querySelectorAll(".copy").forEach(button => button.addEventListener("click", async () => {
  const text = button.parentElement.querySelector("pre");
  try { await navigator.clipboard.writeText(text.textContent); button.textContent = "Copied"; }
  catch { getSelection().selectAllChildren(text); button.textContent = "Selected"; }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
"""
