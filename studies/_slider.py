"""A page on which a reader moves the guidance weight and sees the paths of the toy move."""

import json
from pathlib import Path
from typing import Any

from qgf.reports import Page

BODY = """
<p class="lead">Noise flows to actions along an exact velocity; the critic is
Q(a) = −‖a − a*‖. Every step of the flow adds the guidance weight times the critic's gradient.
The estimators differ in where that gradient is taken.</p>
<form id="form">
<p><label>Guidance weight <output id="shown" for="weight"></output><br>
<input id="weight" type="range" min="0" max="8" step="0.05" value="1" style="width: 100%">
</label></p>
<p><label>Gradient <select id="method">
<option value="qgf">QGF: at the one-step clean action</option>
<option value="qfql">OOD (QFQL): at the noisy action</option>
<option value="bptt">BPTT: through all steps left</option>
</select></label>
<label>Dimensions <select id="dim"><option>1</option><option>2</option></select></label></p>
</form>
<p class="result" id="result" role="status"></p>
<svg id="picture" viewBox="0 0 720 460" role="img" width="100%"
 aria-label="Paths of the particles from noise to actions"></svg>
<p class="lead" id="caption"></p>
<noscript><p class="note">The picture is drawn by a script, which is switched off.</p></noscript>
<script>
"use strict";
const SETTING = /*setting*/;
/*script*/
</script>
"""

SCRIPT = """
const $ = id => document.getElementById(id), clip = x => Math.max(-1, Math.min(1, x));
const norm = x => Math.sqrt(x.reduce((sum, y) => sum + y * y, 0));
const minus = (x, y) => x.map((z, i) => z - y[i]);

// The velocity at x and its (symmetric) Jacobian: see the class Mixture.
function flow(problem, x, t) {
  const s2 = SETTING.std ** 2, variance = t * t * s2 + (1 - t) ** 2;
  const slope = (t * s2 - (1 - t)) / variance, keep = 1 - slope * t;
  const logits = problem.means.map(m => -(norm(minus(x, m.map(y => t * y))) ** 2) / (2 * variance));
  const top = Math.max(...logits), odds = logits.map(y => Math.exp(y - top));
  const total = odds.reduce((a, b) => a + b), share = odds.map(y => y / total);
  const mean = x.map((_, i) => share.reduce((sum, p, j) => sum + p * problem.means[j][i], 0));
  const v = x.map((y, i) => slope * y + keep * mean[i]);
  const jacobian = x.map((_, i) => x.map((_, k) => (i === k ? slope : 0) + keep * t / variance *
    share.reduce((sum, p, j) =>
      sum + p * (problem.means[j][i] - mean[i]) * (problem.means[j][k] - mean[k]), 0)));
  return {v, jacobian};
}

function slopeOfQ(problem, x) {
  const away = minus(problem.peak, x), length = norm(away);
  return away.map(y => length ? y / length : 0);
}

function gradient(method, problem, x, k, v) {
  const T = SETTING.steps;
  if (method === "qfql") return slopeOfQ(problem, x);
  if (method === "qgf") return slopeOfQ(problem, x.map((y, i) => clip(y + (1 - k / T) * v[i])));
  const jacobians = [];
  for (let j = k; j < T; j++) {
    const f = flow(problem, x, j / T);
    x = x.map((y, i) => y + f.v[i] / T);
    jacobians.push(f.jacobian);
  }
  let g = slopeOfQ(problem, x.map(clip)).map((y, i) => Math.abs(x[i]) > 1 ? 0 : y);
  for (const J of jacobians.reverse())
    g = g.map((y, i) => y + J[i].reduce((sum, z, j) => sum + z * g[j], 0) / T);
  return g;
}

function guided(problem, method, weight, x) {
  const T = SETTING.steps, path = [x];
  for (let k = 0; k < T; k++) {
    const v = flow(problem, x, k / T).v;
    const g = weight ? gradient(method, problem, x, k, v) : x.map(() => 0);
    x = x.map((y, i) => y + (v[i] + weight * g[i]) / T);
    path.push(x);
  }
  return path;
}

function nearest(problem, x) {
  const far = problem.means.map(m => norm(minus(x, m)));
  return far.indexOf(Math.min(...far));
}

const COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];

function picture(problem, paths, ends) {
  const flat = problem.peak.length === 1;
  const across = (x, low, high) => 40 + 640 * (x - low) / (high - low);
  const down = y => 220 - 85 * Math.max(-2.5, Math.min(2.5, y));
  const wide = x => 360 + 85 * Math.max(-4, Math.min(4, x));
  const at = (x, k) => flat ? [across(k, 0, SETTING.steps), down(x[0])] : [wide(x[0]), down(x[1])];
  const spot = x => flat ? at(x, SETTING.steps) : at(x, 0);
  let svg = "";
  for (const m of problem.means) {
    const [x, y] = spot(m);
    svg += flat ? `<path d="M40 ${y}H680" stroke="#ddd" stroke-width="10"/>`
      : `<circle cx="${x}" cy="${y}" r="12" fill="#ddd"/>`;
  }
  paths.forEach((path, i) => {
    const line = path.map((x, k) => at(x, k).map(y => y.toFixed(2)).join(" ")).join("L");
    const color = COLORS[nearest(problem, ends[i])], [x, y] = spot(ends[i]);
    svg += `<path class="path" d="M${line}" fill="none" stroke="${color}" stroke-opacity=".6"/>` +
      `<circle cx="${x.toFixed(2)}" cy="${y.toFixed(2)}" r="3" fill="${color}"/>`;
  });
  const [x, y] = spot(problem.peak), [right, below] = flat ? [10, 6] : [-9, 32];
  svg += `<text x="${x + right}" y="${y + below}" font-size="18" font-weight="bold">a*</text>`;
  if (flat) svg += '<text x="40" y="455">noise, t = 0</text>' +
    '<text x="680" y="455" text-anchor="end">action, t = 1</text>';
  return svg;
}

function show() {
  const weight = Number($("weight").value), problem = SETTING.problems[$("dim").value];
  const paths = problem.noise.map(x => guided(problem, $("method").value, weight, x));
  const ends = paths.map(path => path[path.length - 1].map(clip));
  const right = ends.filter(x => nearest(problem, x) === nearest(problem, problem.peak)).length;
  const far = ends.reduce((sum, x) => sum + norm(minus(x, problem.peak)), 0) / ends.length;
  $("shown").textContent = weight.toFixed(2) + (weight ? "" : " (the policy itself)");
  $("weight").setAttribute("aria-valuetext", weight.toFixed(2));
  $("result").textContent = `${right} of ${ends.length} particles end in the mode of a*; ` +
    `mean distance to a* ${far.toFixed(3)}.`;
  $("picture").innerHTML = picture(problem, paths, ends);
  $("caption").textContent = "Grey: the modes. A line's colour tells the mode it ends in. " +
    `${SETTING.steps} Euler steps` + ($("dim").value === "1" ? ", from left to right." : ".");
  window.ends = ends;
}

$("form").addEventListener("input", show);
$("form").addEventListener("submit", event => event.preventDefault());
show();
"""


def write_slider(path: Path, setting: dict[str, Any]) -> None:
    """Write the page, which needs nothing beside itself.

    Args:
        setting: steps, std, and problems: number of dimensions -> {means, peak, noise}.

    Raises:
        UserError: the page cannot be written.
    """
    page = Page(path.parent)
    script = BODY.replace("/*setting*/", json.dumps(setting)).replace("/*script*/", SCRIPT)
    page.add(script)
    page.write(path, "Guidance of a flow by a critic's gradient")
