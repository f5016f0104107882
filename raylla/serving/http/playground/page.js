// The playground. Everything that comes from the endpoint is put in as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const state = { key: "", start: null, bids: new Map(), own: new Map(), last: null, running: null, candidates: [] };

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function money(micros) {
  const amount = micros / 1e6;
  const digits = micros % 10000 === 0 ? 2 : 6;
  return new Intl.NumberFormat("en", {
    style: "currency", currency: state.start.currency, minimumFractionDigits: 2, maximumFractionDigits: digits,
  }).format(amount);
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const users = () => state.start.users;

async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${state.key}`, ...options.headers };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `the endpoint answered ${response.status}`);
}

function fail(error) {
  byId("error").textContent = error.message;
  byId("error").hidden = false;
}

// ---- key and start

async function open(key) {
  state.key = key;
  byId("error").hidden = true;
  state.start = await (await call("/playground/start")).json();
  sessionStorage.setItem("raylla-key", key);
  byId("key-form").hidden = true;
  byId("ask-form").hidden = false;
  const select = byId("user");
  select.replaceChildren(new Option("Nobody in particular", ""));
  users().forEach((user, place) => {
    select.append(new Option(`${user.basics}, likes ${user.interests.join(", ")}`, String(place)));
  });
  if (users().length) select.value = "0";
  const rules = {
    first_price: "the bid, per click", expected: "bid × click rate, per impression",
    resampled: "truthful, settled in sums", reserve: "learned, at most the bid, per click",
  };
  byId("about").textContent = `Price: ${rules[state.start.price_rule] ?? state.start.price_rule}.`;
  explain();
  byId("question").focus();
}

function hint(test) {
  if (!state.last) return "The ads that the answer was written with appear here, with a bid to drag.";
  if (!state.candidates.length) return "No ad competed for this question.";
  if (!state.last.detail.candidates) return "A real auction names the ads that it placed; a test auction names all.";
  return test ? "Drag a bid, or focus it and press the arrow keys, then ask again." : "Bids move in test auctions only.";
}

function explain() {
  const test = byId("test").checked;
  byId("test-hint").textContent = test
    ? "Bids can be moved, and nothing is billed."
    : "A real auction at the advertisers' own bids: clicks are charged to them.";
  for (const slider of document.querySelectorAll(".slider")) slider.hidden = !test;
  byId("bids-hint").textContent = hint(test);
  byId("again").disabled = !state.last || state.running !== null;
  byId("reset").disabled = !test || state.bids.size === 0;
}

// ---- asking

function body() {
  const user = users()[Number(byId("user").value)];
  const chosen = byId("user").value === "" ? undefined : user;
  const test = byId("test").checked;
  const extras = { ads: byId("ads").checked, test, links: "annotations" };
  if (chosen) extras.profile = { id: chosen.id, basics: chosen.basics, interests: chosen.interests };
  if (test && state.bids.size) extras.bids = Object.fromEntries(state.bids);
  return {
    stream: true, stream_options: { include_usage: true }, raylla: extras,
    messages: [{ role: "user", content: byId("question").value.trim() }],
  };
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ") && block !== "data: [DONE]") yield JSON.parse(block.slice(6));
    }
  }
}

async function ask() {
  if (!byId("question").value.trim()) return;
  state.running?.abort();
  const mine = new AbortController();
  state.running = mine;
  const started = performance.now();
  const answer = byId("answer");
  const found = { text: "", annotations: [], detail: null, usage: null, first: null };
  byId("error").hidden = true;
  byId("facts").replaceChildren();
  answer.replaceChildren();
  answer.setAttribute("aria-busy", "true");
  byId("stop").hidden = false;
  explain();
  try {
    const response = await call("/v1/chat/completions", {
      method: "POST", signal: mine.signal, body: JSON.stringify(body()),
      headers: { "Content-Type": "application/json" },
    });
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices?.[0]?.delta;
      if (delta?.content) {
        found.first ??= performance.now() - started;
        found.text += delta.content;
        answer.append(delta.content);
      }
      if (delta?.annotations) found.annotations = delta.annotations;
      if (event.raylla) found.detail = event.raylla;
      if (event.usage) found.usage = event.usage;
    }
    found.total = performance.now() - started;
    if (!found.detail) throw new Error("the answer broke off");
    show(found);
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  } finally {
    if (state.running === mine) {
      state.running = null;
      answer.setAttribute("aria-busy", "false");
      byId("stop").hidden = true;
      explain();
    }
  }
}

// ---- showing

function show(found) {
  state.last = found;
  showAnswer(found);
  showFacts(found);
  const candidates = found.detail.candidates ?? found.detail.ads.map((ad, place) => ({
    ad_id: ad.ad_id, title: found.annotations[place].url_citation.title, category: ad.cat.join(", "),
    bid_micros: ad.bid_micros,
  }));
  // Prompts list their ads in another order each time; rows that were there stay where they were.
  const before = new Map(state.candidates.map((one, place) => [one.ad_id, place]));
  const place = (one) => before.get(one.ad_id) ?? before.size;
  state.candidates = [...candidates].sort((a, b) => place(a) - place(b));
  for (const one of candidates) if (!state.bids.has(one.ad_id)) state.own.set(one.ad_id, one.bid_micros);
  showCandidates(found);
  if (found.detail.price_rule === "expected") watchCharges(found.detail, null);
}

function showAnswer(found) {
  // Offsets count characters (code points), JavaScript's strings count UTF-16 units.
  const characters = Array.from(found.text);
  const pieces = [];
  let at = 0;
  found.annotations.forEach((annotation, place) => {
    const cited = annotation.url_citation;
    const ad = found.detail.ads[place];
    pieces.push(characters.slice(at, cited.start_index).join(""));
    at = cited.end_index;
    const label = ` (${ad.disclosure})`;
    if (characters.slice(at, at + label.length).join("") === label) at += Array.from(label).length;
    pieces.push(marked(characters.slice(cited.start_index, cited.end_index).join(""), cited.url, ad, found.detail));
  });
  pieces.push(characters.slice(at).join(""));
  byId("answer").replaceChildren(...pieces);
}

function marked(title, url, ad, detail) {
  const mark = element("span", undefined, "ad");
  const link = element("a", title);
  if (/^https?:$/.test(new URL(url, location.href).protocol)) link.href = url;
  link.target = "_blank";
  link.rel = "noopener noreferrer sponsored";
  link.dataset.ad = ad.ad_id;
  link.setAttribute("aria-label", `${title}, ${ad.disclosure}, opens the advertiser's page in a new tab`);
  for (const type of ["click", "auxclick"]) link.addEventListener(type, () => watchCharges(detail, ad));
  for (const [type, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) {
    link.addEventListener(type, () => rowOf(ad.ad_id)?.classList.toggle("pointed", on));
  }
  mark.append(link, element("span", ad.disclosure, "label"));
  return mark;
}

const rowOf = (adId) => byId("candidates").querySelector(`[data-ad="${CSS.escape(adId)}"]`);

function showFacts(found) {
  const facts = byId("facts");
  const add = (name, value) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    facts.append(pair);
  };
  add("Weights", found.detail.weight_version);
  if (found.usage) add("Tokens", `${found.usage.prompt_tokens} in, ${found.usage.completion_tokens} out`);
  add("First text", `${Math.round(found.first ?? found.total)} ms`);
  add("Whole answer", `${Math.round(found.total)} ms`);
  const listed = (counts) => Object.entries(counts ?? {}).map(([name, count]) => `${count} ${name.replaceAll("_", " ")}`);
  const filtered = listed(found.detail.filtered);
  if (filtered.length) add("Left out", filtered.join(", "));
  const violations = listed(found.detail.violations);
  if (violations.length) add("Format errors repaired", violations.join(", "));
  if (found.detail.auction_id) add("Auction", found.detail.auction_id);
}

function showCandidates(found) {
  const list = byId("candidates");
  const focused = document.activeElement?.closest?.(".candidate")?.dataset.ad;
  const placed = new Map(found.detail.ads.map((ad) => [ad.ad_id, ad]));
  list.replaceChildren(...state.candidates.map((one) => candidate(one, placed.get(one.ad_id))));
  if (focused) rowOf(focused)?.querySelector(".slider").focus();
  explain();
}

function candidate(one, ad) {
  const row = byId("candidate").content.firstElementChild.cloneNode(true);
  const part = (name) => row.querySelector(`.${name}`);
  const unit = state.start.micros_per_unit;
  const own = state.own.get(one.ad_id) ?? one.bid_micros;
  row.dataset.ad = one.ad_id;
  part("title").textContent = one.title;
  part("category").textContent = one.category;
  const slider = part("slider");
  slider.max = String(state.start.max_bid);
  slider.value = String(Math.round((state.bids.get(one.ad_id) ?? own) / unit));
  slider.setAttribute("aria-label", `Bid of ${one.title}`);
  const say = () => {
    const micros = Number(slider.value) * unit;
    part("bid").textContent = money(micros);
    slider.setAttribute("aria-valuetext", `${money(micros)} per click`);
    part("was").textContent = micros === own ? "" : `own bid ${money(own)}`;
  };
  slider.addEventListener("input", () => {
    state.bids.set(one.ad_id, Number(slider.value) * unit);
    say();
    byId("again").classList.add("primary");
    explain();
  });
  slider.addEventListener("keydown", (event) => { if (event.key === "Enter") ask(); });
  say();
  effect(row, part, ad);
  return row;
}

function effect(row, part, ad) {
  part("state").textContent = ad ? "In the answer" : "Not in the answer";
  if (!ad) return;
  row.classList.add("placed");
  part("rate").hidden = false;
  part("range").style.left = `${100 * ad.ctr_low}%`;
  part("range").style.width = `${100 * (ad.ctr_high - ad.ctr_low)}%`;
  part("point").style.left = `${100 * ad.ctr}%`;
  const event = state.last.detail.price_rule === "expected" ? "impression" : "click";
  const range = `${percent(ad.ctr_low)} to ${percent(ad.ctr_high)}`;
  const words = `${percent(ad.ctr)} clicks (${range}) · ${money(ad.price_micros)} per ${event}`;
  part("meter").setAttribute("aria-label", `Expected click rate ${percent(ad.ctr)}`);
  part("words").textContent = words;
}

// ---- charges

async function watchCharges(detail, ad) {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  try {
    for (let attempt = 0; attempt < 40; attempt += 1) {
      await wait(attempt ? 250 : 60);
      const auction = await (await call(`/v1/auctions/${encodeURIComponent(detail.auction_id)}`)).json();
      const shown = auction.impressions.filter((one) => (ad ? one.impid === ad.impid && one.clicked : one.booked_micros !== null));
      if (shown.length) {
        shown.forEach((one) => charge(auction, one, Boolean(ad)));
        return;
      }
      if (!ad) return;
    }
    throw new Error("the click has not arrived at the endpoint");
  } catch (error) {
    fail(error);
  }
}

function charge(auction, impression, clicked) {
  const log = byId("charges");
  log.querySelector(".empty")?.remove();
  const title = state.candidates.find((one) => one.ad_id === impression.ad_id)?.title ?? `Ad ${impression.ad_id}`;
  const booked = impression.booked_micros !== null;
  const due = clicked && impression.charged_at === "impression" ? 0 : impression.price_micros;
  const amount = element("span", money(booked ? impression.booked_micros : due), `amount${booked ? " booked" : ""}`);
  let why = "clicked; no budget left, nothing booked";
  if (auction.test) why = "test click: this is what it would have cost, nothing is billed";
  else if (booked && impression.booked_as === "accrual") why = "accrued: billed with the next settlement";
  else if (booked) why = impression.charged_at === "click" ? "charged for the click" : "charged for the impression";
  const now = new Date();
  const time = element("time", now.toLocaleTimeString("en-GB"));
  time.dateTime = now.toISOString();
  const line = element("li");
  line.append(time, element("span", title), amount, element("span", why, "why"));
  log.prepend(line);
}

// ---- wiring

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  open(byId("key").value.trim()).catch(fail);
});
byId("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.bids.clear();
  byId("again").classList.remove("primary");
  ask();
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask-form").requestSubmit();
  }
});
byId("again").addEventListener("click", () => {
  byId("again").classList.remove("primary");
  ask();
});
byId("reset").addEventListener("click", () => {
  state.bids.clear();
  if (state.last) showCandidates(state.last);
});
byId("stop").addEventListener("click", () => state.running?.abort());
byId("test").addEventListener("change", explain);

const handed = new URLSearchParams(location.hash.slice(1)).get("key");
if (handed) history.replaceState(null, "", location.pathname);
const key = handed ?? sessionStorage.getItem("raylla-key");
if (key) open(key).catch((error) => { sessionStorage.removeItem("raylla-key"); fail(error); });
