"use strict";

document.documentElement.classList.add("js");

// Tables: a click on a header sorts up, then down, then as written; what has no value comes last.
const collator = new Intl.Collator("en", { numeric: true });
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function compare(a, b, sign, words) {
  if (words) return sign * collator.compare(a.textContent, b.textContent);
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
  return sign * (Number(x) - Number(y));
}

function sort(heads, body, written, column) {
  const order = NEXT[heads[column].ariaSort];
  heads.forEach((head, at) => { head.ariaSort = at === column ? order : "none"; });
  const sign = order === "descending" ? -1 : 1;
  const words = heads[column].classList.contains("name");
  const sorted = [...written];
  if (order !== "none") {
    sorted.sort((a, b) => compare(a.cells[column], b.cells[column], sign, words));
  }
  body.append(...sorted);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const [heads, body] = [[...table.tHead.rows[0].cells], table.tBodies[0]];
  const written = [...body.rows];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => sort(heads, body, written, column));
  });
}

// The box beside the pointer. All text in it is set as text.
const tip = document.getElementById("tip");
const MOST = 12; // lines of the box

function place(x, y) {
  const [wide, high] = [tip.offsetWidth, tip.offsetHeight];
  const left = x + 14 + wide < innerWidth ? x + 14 : x - 14 - wide;
  const top = y + 14 + high < innerHeight ? y + 14 : y - 14 - high;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - wide - 4))}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function show(x, y, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  place(x, y);
}

for (const cell of document.querySelectorAll("[data-tip]")) {
  cell.addEventListener("pointerenter", (event) => {
    show(event.clientX, event.clientY, element("p", cell.dataset.tip));
  });
  cell.addEventListener("pointerleave", () => { tip.hidden = true; });
}

// Plots: the point nearest to the pointer, with those that lie on it; arrow keys step through all.
function equip(plot) {
  const area = plot.querySelector(".area");
  const lines = [...area.querySelectorAll(".line")];
  const buttons = [...plot.querySelectorAll(".legend button")];
  const dots = lines.flatMap((line, number) => [...line.querySelectorAll("use")].map((dot) => ({
    line, number, x: parseFloat(dot.getAttribute("x")) / 100,
    y: parseFloat(dot.getAttribute("y")) / 100, texts: dot.textContent.split("\n"),
  })));
  const drawn = ({ line }) => line.style.display !== "none";
  let current = -1;

  const heat = (hot) => {
    area.classList.toggle("busy", hot.length > 0);
    for (const line of lines) line.classList.toggle("hot", hot.includes(line));
  };
  const calm = () => { tip.hidden = true; heat([]); };

  const tell = (dot) => {
    const box = area.getBoundingClientRect();
    const off = (other) => Math.hypot((other.x - dot.x) * box.width, (other.y - dot.y) * box.height);
    const here = dots.filter((other) => off(other) < 4 && drawn(other));
    here.sort((a, b) => off(a) - off(b));
    const rows = here.slice(0, MOST).map(({ number, texts }) => {
      const row = document.createElement("div");
      row.append(buttons[number].firstElementChild.cloneNode(true));
      row.append(element("span", texts[0]), element("b", texts[1]));
      return row;
    });
    if (here.length > MOST) rows.push(element("p", `and ${here.length - MOST} more`));
    show(box.left + dot.x * box.width, box.top + dot.y * box.height, ...rows);
    heat(here.map(({ line }) => line));
    current = dots.indexOf(dot);
  };

  const near = (event) => {
    const box = area.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const far = (dot) => Math.hypot(dot.x * box.width - x, dot.y * box.height - y);
    const seen = dots.filter(drawn);
    if (seen.length) tell(seen.reduce((a, b) => (far(b) < far(a) ? b : a)));
  };

  const step = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by === undefined || !dots.some(drawn)) return;
    event.preventDefault();
    do current = (current + by + dots.length) % dots.length;
    while (!drawn(dots[current]));
    tell(dots[current]);
  };

  area.addEventListener("pointermove", near);
  area.addEventListener("pointerdown", near);
  area.addEventListener("pointerleave", calm);
  area.addEventListener("keydown", step);
  area.addEventListener("blur", calm);
  buttons.forEach((button, number) => {
    button.addEventListener("pointerenter", () => heat([lines[number]]));
    button.addEventListener("pointerleave", () => heat([]));
    button.addEventListener("click", () => {
      const pressed = button.ariaPressed === "true";
      const others = lines.some((line, at) => at !== number && line.style.display !== "none");
      if (pressed && !others) return; // the last one stays
      button.ariaPressed = String(!pressed);
      lines[number].style.display = pressed ? "none" : "";
    });
  });
}

document.querySelectorAll(".plot").forEach(equip);

const theme = document.getElementById("theme");
const THEMES = ["auto", "light", "dark"];
theme.addEventListener("click", () => {
  const { dataset } = document.documentElement;
  dataset.theme = THEMES[(THEMES.indexOf(dataset.theme) + 1) % THEMES.length];
  theme.textContent = `theme: ${dataset.theme}`;
});
