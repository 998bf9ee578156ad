"use strict";
(() => {
  // Tables: a click on a heading sorts; a second click turns the order round.
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((th, i) => {
      const button = th.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const down = th.getAttribute("aria-sort") !== "descending";
        heads.forEach((x) => x.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (tr) => parseFloat(tr.cells[i].dataset.v ?? tr.cells[i].textContent);
        const body = table.tBodies[0];
        [...body.rows]
          .map((tr, n) => [key(tr), n, tr])
          .sort((a, b) => (down ? b[0] - a[0] : a[0] - b[0]) || a[1] - b[1])
          .forEach(([, , tr]) => body.append(tr));
      });
    });
  });

  const num = (s) => parseFloat(s);
  const clamp = (x, lo, hi) => Math.max(lo, Math.min(hi, x));
  const fixed = (x, n) => x.toFixed(n);

  // One-bit numbers of a generalised Gaussian exp(-|x/a|^(1/t)).
  const lanczos = [0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313,
    -176.61502916214059, 12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  const lgamma = (x) => {
    if (x < 0.5) return lgamma(x + 1) - Math.log(x);
    x -= 1;
    let sum = lanczos[0];
    for (let i = 1; i < lanczos.length; i++) sum += lanczos[i] / (x + i);
    const t = x + 7.5;
    return 0.91893853320467274178 + (x + 0.5) * Math.log(t) - t + Math.log(sum);
  };
  const momentRatio = (t) => (t <= 0 ? 0.75 : Math.exp(2 * lgamma(2 * t) - lgamma(t) - lgamma(3 * t)));
  const density = (t, x) => {
    x = Math.abs(x);
    if (t <= 0) return x <= Math.sqrt(3) ? 1 / (2 * Math.sqrt(3)) : 0;
    const a = Math.exp((lgamma(t) - lgamma(3 * t)) / 2);
    const e = x > 0 ? Math.exp(Math.min(700, Math.log(x / a) / t)) : 0;
    return Math.exp(-e - lgamma(1 + t)) / (2 * a);
  };

  // Cosine and moment ratio of points in a plane, turned by degrees.
  const planeBeta = (points, deg) => {
    const s = Math.sin((deg * Math.PI) / 180), c = Math.cos((deg * Math.PI) / 180);
    let sum = 0, abs = 0, sq = 0, n = 0;
    for (const [px, py] of points) {
      const x = c * px - s * py, y = s * px + c * py, r2 = x * x + y * y;
      if (r2 === 0) continue;
      const a = Math.abs(x) + Math.abs(y);
      n++;
      sum += a / Math.sqrt(2 * r2);
      abs += a;
      sq += r2;
    }
    const m = abs / (2 * n);
    return n ? [sum / n, (m * m) / (sq / (2 * n))] : [0, 0];
  };

  const softmax = (z) => {
    const m = Math.max(...z), e = z.map((v) => Math.exp(v - m)), sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  };
  const topOf = (p) => p.reduce((best, v, i) => (v > p[best] ? i : best), 0);
  const scoreStats = (float, coded, sink) => {
    const f = float.slice(sink), k = coded.slice(sink), n = f.length;
    const p = softmax(float), q = softmax(coded);
    const mean = (x) => x.reduce((a, b) => a + b, 0) / n;
    if (!n) return { shift: 0, rms: 0, r: 1, kl: 0, same: true, p, q };
    const mx = mean(f), my = mean(k), shift = my - mx;
    let ss = 0, xx = 0, yy = 0, xy = 0;
    f.forEach((v, i) => {
      const x = v - mx, y = k[i] - my;
      ss += (y - x) ** 2;
      xx += x * x;
      yy += y * y;
      xy += x * y;
    });
    let kl = 0;
    p.forEach((v, i) => { if (v > 0 && q[i] > 0) kl += v * (Math.log(v) - Math.log(q[i])); });
    return { shift, rms: Math.sqrt(ss / n), r: xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : 0, kl: Math.max(0, kl), same: topOf(p) === topOf(q), p, q };
  };

  const parts = (svg) => (name) => svg.querySelector(`[data-part="${name}"]`);
  const spot = (svg, e) => {
    const p = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [p.x, p.y];
  };
  // drag calls move with the pointer's place in the picture, from press to release.
  const drag = (svg, start, move) => {
    let on = false;
    svg.addEventListener("pointerdown", (e) => {
      if (e.button) return;
      on = true;
      svg.setPointerCapture(e.pointerId);
      start(spot(svg, e));
      e.preventDefault();
    });
    svg.addEventListener("pointermove", (e) => on && move(spot(svg, e)));
    ["pointerup", "pointercancel"].forEach((name) => svg.addEventListener(name, () => { on = false; }));
  };

  const shape = (svg, range, out) => {
    const g = svg.dataset, part = parts(svg), x0 = num(g.x0), unit = num(g.unit), base = num(g.base), n = num(g.points);
    const draw = () => {
      const t = 1 - range.value / 100, ratio = momentRatio(t), m = Math.sqrt(ratio);
      let d = "";
      for (let i = 0; i <= n; i++) {
        const x = -4 + (8 * i) / n;
        d += (i ? "L" : "M") + (x0 + unit * x).toFixed(2) + " " + (base - num(g.scale) * density(t, x)).toFixed(2);
      }
      part("curve").setAttribute("d", d);
      part("area").setAttribute("d", d + "Z");
      [["left", -m], ["right", m]].forEach(([name, v]) => {
        part(name).setAttribute("x1", x0 + unit * v);
        part(name).setAttribute("x2", x0 + unit * v);
      });
      const mark = part("marker"), k = mark.dataset;
      mark.setAttribute("cx", num(k.a) + ((ratio - num(k.lo)) / (num(k.hi) - num(k.lo))) * (num(k.b) - num(k.a)));
      const name = t === 1 ? "Laplace" : t === 0.5 ? "Gaussian" : t === 0 ? "uniform" : t < 0.5 ? "between Gaussian and uniform" : "between Laplace and Gaussian";
      out.value = `${name}: moment ratio ${fixed(ratio, 4)}, one-bit cosine ${fixed(m, 4)}, energy lost ${fixed(100 * (1 - ratio), 1)} %`;
    };
    let from = 0, value = 50;
    drag(svg, ([x]) => { from = x; value = +range.value; }, ([x]) => {
      range.value = clamp(Math.round(value + ((x - from) / (unit * 8)) * 200), 0, 100);
      draw();
    });
    range.addEventListener("input", draw);
  };

  const cloud = (svg, range, out, data) => {
    const g = svg.dataset, part = parts(svg), x0 = num(g.x0), y0 = num(g.y0);
    const draw = () => {
      const deg = +range.value, [cos, ratio] = planeBeta(data.points, deg);
      part("points").setAttribute("transform", `rotate(${-deg} ${x0} ${y0})`);
      const k = part("cursor").dataset;
      part("cursor").setAttribute("cx", num(k.xa) + (deg / 90) * (num(k.xb) - num(k.xa)));
      part("cursor").setAttribute("cy", num(k.ya) + ((cos - num(k.lo)) / (num(k.hi) - num(k.lo))) * (num(k.yb) - num(k.ya)));
      out.value = `turned by ${fixed(deg, 1)}°: one-bit cosine ${fixed(cos, 4)}, moment ratio ${fixed(ratio, 4)}`;
    };
    const xa = num(part("cursor").dataset.xa), xb = num(part("cursor").dataset.xb);
    const onCurve = ([x]) => x > xa - 20;
    const set = (deg) => { range.value = deg; draw(); };
    const angle = ([x, y]) => (Math.atan2(y0 - y, x - x0) * 180) / Math.PI;
    let curve = false, before = 0, value = 0;
    drag(svg, (p) => {
      curve = onCurve(p);
      if (curve) set(clamp(((p[0] - xa) / (xb - xa)) * 90, 0, 90));
      before = angle(p);
      value = +range.value;
    }, (p) => {
      if (curve) return set(clamp(((p[0] - xa) / (xb - xa)) * 90, 0, 90));
      let step = angle(p) - before;
      before = angle(p);
      if (step > 180) step -= 360;
      if (step < -180) step += 360;
      // A quarter turn is a symmetry of signs, so the dial wraps there.
      value = (((value + step) % 90) + 90) % 90;
      set(value);
    });
    range.addEventListener("input", draw);
  };

  const scores = (svg, range, out, data) => {
    const g = svg.dataset, part = parts(svg), dots = [...part("points").children], stats = [];
    const get = (i) => (stats[i] ??= scoreStats(data.float, data.codes[i].scores, data.sink));
    const y = (v) => num(g.ya) + ((v - num(g.lo)) / (num(g.hi) - num(g.lo))) * (num(g.yb) - num(g.ya));
    const draw = () => {
      const i = +range.value, c = data.codes[i], s = get(i), most = Math.max(...s.p, ...s.q);
      dots.forEach((dot, j) => dot.setAttribute("cy", clamp(y(c.scores[j] - s.shift), num(g.ymin), num(g.ymax))));
      const bar = (p, sign) => p.map((v, j) => `M${(num(g.left) + num(g.step) * (j + 0.5)).toFixed(2)} ${num(g.mid)}V${(num(g.mid) + sign * num(g.half) * Math.sqrt(v / most)).toFixed(2)}`).join("");
      part("weights").setAttribute("d", bar(s.q, 1));
      part("float").setAttribute("d", bar(s.p, -1));
      const own = c.fitted === "" && !["raw", "srht", "random"].includes(c.code);
      out.value = `${c.code}${own ? " (this file)" : ""}, ${fixed(c.bits, 1)} bits: score error ${fixed(s.rms, 4)}, correlation ${fixed(s.r, 4)}, attention KL ${fixed(s.kl, 4)}, strongest key ${s.same ? "stays" : "changes"}`;
    };
    let from = 0, value = 0;
    drag(svg, ([x]) => { from = x; value = +range.value; }, ([x]) => {
      const next = clamp(Math.round(value + (x - from) / 60), 0, data.codes.length - 1);
      if (next !== +range.value) { range.value = next; draw(); }
    });
    range.addEventListener("input", draw);
  };

  const kinds = { shape, cloud, scores };
  document.querySelectorAll(".probe[data-probe]").forEach((el) => {
    const data = JSON.parse(document.getElementById("data-" + el.dataset.model).textContent);
    kinds[el.dataset.probe](el.querySelector(".wide svg"), el.querySelector("input"), el.querySelector("output"), data[el.dataset.probe]);
  });
})();
