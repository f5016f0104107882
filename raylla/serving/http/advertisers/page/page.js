// The console. Everything that comes from the endpoint is put in as text, never as markup.
"use strict";

// ---- signing in

async function signIn(key) {
  state.key = key;
  byId("error").hidden = true;
  state.start = await get("/console/start");
  sessionStorage.setItem("raylla-console-key", key);
  const admin = state.start.role === "admin";
  for (const one of document.querySelectorAll(".admin")) one.hidden = !admin;
  if (admin) await offerAdvertisers();
  else byId("by").querySelector(".admin")?.remove();
  byId("about").textContent = admin ? "All advertisers." : (await get(`/v1/advertisers/${state.start.advertiser_id}`)).name;
  byId("key-form").hidden = true;
  byId("key").value = "";
  byId("desk").hidden = false;
  byId("sign-out").hidden = false;
  byId("main").focus();
  await refresh();
}

async function offerAdvertisers() {
  const select = byId("whose");
  select.replaceChildren(new Option("All", ""));
  for (let after = ""; after !== null;) {
    const page = await get(`/v1/advertisers?limit=1000&after=${after}`);
    for (const one of page.items) select.append(new Option(`${one.name} (${one.domain})`, one.id));
    after = page.next;
  }
}

const whose = () => state.start.advertiser_id ?? byId("whose").value;

async function refresh() {
  await Promise.all([showFigures(), showVersions(), showCampaigns()]);
}

// ---- figures

function query(by, more = {}) {
  const midnight = new Date();
  midnight.setUTCHours(0, 0, 0, 0);
  const day = 86400000;
  const from = new Date(midnight.getTime() - (Number(byId("days").value) - 1) * day);
  const asked = new URLSearchParams({ from: from.toISOString(), to: new Date(midnight.getTime() + day).toISOString(), ...more });
  for (const one of by) asked.append("by", one);
  if (whose()) asked.set("advertiser", whose());
  return `/v1/reports?${asked}`;
}

const COLUMNS = [
  ["Impressions", (one) => whole(one.impressions)],
  ["Clicks", (one) => whole(one.clicks)],
  ["Invalid", (one) => whole(one.invalid_clicks)],
  ["Click rate (95 %)", (one) => (one.click_rate === null ? "–"
    : `${percent(one.click_rate)} (${percent(one.click_rate_low)} to ${percent(one.click_rate_high)})`)],
  ["Expected", (one) => money(one.expected_micros)],
  ["Charged", (one) => money(one.charged_micros)],
  ["Per click", (one) => amount(one.cost_per_click_micros)],
  ["Conversions", (one) => whole(one.conversions)],
  ["Per conversion", (one) => amount(one.cost_per_conversion_micros)],
  ["Lost", (one) => Object.entries(one.lost).map(([why, loss]) => `${percent(loss.share)} ${why.replaceAll("_", " ")}`).join(", ") || "–"],
];

function fill(table, first, lines, name) {
  const head = element("tr");
  for (const title of [first, ...COLUMNS.map(([title]) => title)]) {
    const cell = element("th", title);
    cell.scope = "col";
    head.append(cell);
  }
  table.querySelector("thead").replaceChildren(head);
  table.querySelector("tbody").replaceChildren(...lines.map((line) => {
    const row = element("tr");
    const title = element("th", name(line));
    title.scope = "row";
    row.append(title, ...COLUMNS.map(([, say]) => element("td", say(line))));
    return row;
  }));
}

async function showFigures() {
  const by = byId("by").value;
  const time = byId("days").value === "1" ? "hour" : "day";
  const [curve, table] = await Promise.all([get(query([time])), get(query([by], { limit: "500" }))]);
  showTotals(curve.total);
  showCurve(curve, time);
  const named = { campaign: "Campaign", ad: "Ad", category: "Category", weight_version: "Weights", day: "Day", advertiser: "Advertiser" };
  await learnTitles(by, table.lines);
  fill(byId("figures"), named[by], table.lines, (line) => state.titles.get(`${by}/${line[by]}`) ?? line[by]);
}

// Names of what lines are of, looked up once.
async function learnTitles(by, lines) {
  const paths = { campaign: ["campaigns", "name"], ad: ["ads", "title"], advertiser: ["advertisers", "name"] };
  if (!paths[by]) return;
  const [path, field] = paths[by];
  const unknown = lines.map((line) => line[by]).filter((id) => !state.titles.has(`${by}/${id}`));
  for (const id of unknown.slice(0, 100)) state.titles.set(`${by}/${id}`, (await get(`/v1/${path}/${id}`))[field]);
}

function showTotals(total) {
  const range = total.click_rate === null ? "" : `${percent(total.click_rate_low)} to ${percent(total.click_rate_high)}`;
  const facts = [
    [state.start.role === "admin" ? "Revenue" : "Spend", money(total.charged_micros), `${money(total.expected_micros)} expected`],
    ["Impressions", whole(total.impressions), ""],
    ["Clicks", whole(total.clicks), `${whole(total.invalid_clicks)} invalid`],
    ["Click rate", percent(total.click_rate), range],
    ["Cost per click", amount(total.cost_per_click_micros), ""],
    ["Conversions", whole(total.conversions), `${amount(total.cost_per_conversion_micros)} each`],
  ];
  byId("totals").replaceChildren(...facts.map(([name, value, note]) => {
    const pair = element("div");
    const said = element("dd", value);
    if (note) said.append(element("small", note));
    pair.append(element("dt", name), said);
    return pair;
  }));
}

function showCurve(report, time) {
  const measure = byId("measure");
  const say = measure.value === "charged_micros" ? money : whole;
  const known = new Map(report.lines.map((line) => [Date.parse(line[time]), line[measure.value]]));
  const step = time === "day" ? 86400000 : 3600000;
  const points = [];
  for (let at = Date.parse(report.since); at < Math.min(Date.parse(report.until), Date.now()); at += step) {
    const stamp = new Date(at).toISOString();
    points.push({ label: time === "day" ? stamp.slice(5, 10) : stamp.slice(11, 16), value: known.get(at) ?? 0 });
  }
  const title = `${measure.selectedOptions[0].textContent} by ${time} (UTC)`;
  byId("curve-title").textContent = title;
  byId("curve").querySelector("svg")?.remove();
  byId("curve").append(chart(points, say, `${title}: ${say(report.total[measure.value])} in all`));
}

async function showVersions() {
  if (state.start.role !== "admin") return;
  const health = await fetch("/healthz").then((answer) => answer.json());
  const live = Object.entries(health.versions).map(([name, version]) => `${name} ${version ?? "none"}`).join(", ");
  const wrong = [...health.problems, ...health.tasks].join("; ");
  byId("live").textContent = `${health.status}; live: ${live}${wrong ? `; ${wrong}` : ""}`;
  const report = await get(query(["weight_version"], { limit: "100" }));
  fill(byId("by-version"), "Weights", report.lines, (line) => line.weight_version);
}

async function download() {
  const answer = await call(query([byId("by").value], { format: "csv" }));
  const url = URL.createObjectURL(await answer.blob());
  const link = element("a");
  link.href = url;
  link.download = "report.csv";
  link.click();
  URL.revokeObjectURL(url);
}

// ---- wiring

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(byId("key").value.trim()).catch(fail);
});
byId("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem("raylla-console-key");
  location.reload();
});
for (const id of ["days", "measure", "by"]) byId(id).addEventListener("change", () => showFigures().catch(fail));
byId("whose").addEventListener("change", () => refresh().catch(fail));
byId("time-form").addEventListener("submit", (event) => event.preventDefault());
byId("csv").addEventListener("click", () => doing(byId("csv"), download));

const held = sessionStorage.getItem("raylla-console-key");
if (held) signIn(held).catch((error) => { sessionStorage.removeItem("raylla-console-key"); fail(error); });
