// A curve over time as inline SVG. Texts are put in as text, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

// The largest mark of an axis: 1, 2 or 5 times a power of ten.
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= value);
}

// points: [{label, value}], in order; say(value) writes a value; the name is read out.
function chart(points, say, name) {
  const [width, height, left, right, top, bottom] = [860, 240, 76, 14, 12, 28];
  const most = ceiling(Math.max(0, ...points.map((one) => one.value)));
  const least = Math.min(0, ...points.map((one) => one.value));
  const x = (place) => left + ((width - left - right) * (points.length > 1 ? place : 0.5)) / Math.max(1, points.length - 1);
  const y = (value) => top + ((height - top - bottom) * (most - value)) / (most - least);
  const box = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name });
  for (const mark of [least < 0 ? least : 0, most / 2, most]) {
    box.append(drawn("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }));
    box.append(drawn("text", { x: left - 8, y: y(mark) + 4, "text-anchor": "end" }, say(mark)));
  }
  const path = points.map((one, place) => `${place ? "L" : "M"}${x(place).toFixed(1)} ${y(one.value).toFixed(1)}`).join("");
  if (points.length > 1) {
    box.append(drawn("path", { class: "under", d: `${path}L${x(points.length - 1)} ${y(0)}L${x(0)} ${y(0)}Z` }));
  }
  box.append(drawn("path", { class: "curve", d: path }));
  const step = Math.ceil(points.length / 8);
  points.forEach((one, place) => {
    const point = drawn("circle", { class: "point", cx: x(place), cy: y(one.value), r: points.length > 45 ? 1.5 : 3 });
    point.append(drawn("title", {}, `${one.label}: ${say(one.value)}`));
    box.append(point);
    if (place % step) return;
    const anchor = place === 0 && points.length > 1 ? "start" : place === points.length - 1 && place ? "end" : "middle";
    box.append(drawn("text", { x: x(place), y: height - 8, "text-anchor": anchor }, one.label));
  });
  return box;
}
