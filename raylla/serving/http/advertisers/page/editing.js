// Campaigns and ads: what is there, changes of it, new ones and uploads.
"use strict";

const editing = { campaign: null, afterCampaign: "", afterAd: "" };
const TYPES = { csv: "text/csv", tsv: "text/tab-separated-values", jsonl: "application/jsonl", ndjson: "application/jsonl" };
const micros = (input) => Math.round(Number(input.value) * 1e6);

function bidField(input) {
  const unit = state.start.micros_per_unit / 1e6;
  input.min = input.step = String(unit);
  input.max = String(unit * state.start.max_bid);
}

function more(id, next) {
  byId(id).hidden = next === null;
  return next;
}

// ---- campaigns

async function showCampaigns() {
  closeAds();
  byId("campaigns").replaceChildren();
  editing.afterCampaign = "";
  byId("new-campaign").disabled = !whose();
  if (!whose()) {
    byId("campaigns").append(element("li", "Choose an advertiser to see its campaigns.", "empty"));
    byId("more-campaigns").hidden = true;
    return;
  }
  await moreCampaigns();
  if (!byId("campaigns").children.length) byId("campaigns").append(element("li", "No campaign yet.", "empty"));
}

async function moreCampaigns() {
  const page = await get(`/v1/advertisers/${whose()}/campaigns?limit=50&after=${editing.afterCampaign}`);
  byId("campaigns").append(...page.items.map(campaignRow));
  editing.afterCampaign = more("more-campaigns", page.next);
}

function campaignRow(one) {
  const row = byId("campaign").content.firstElementChild.cloneNode(true);
  const part = (name) => row.querySelector(`.${name}`);
  const field = part("amount");
  field.id = `budget-${one.id}`;
  part("amount-label").htmlFor = field.id;
  field.setAttribute("aria-label", `Daily budget of ${one.name}`);
  const show = (now) => {
    part("title").textContent = now.name;
    row.dataset.id = now.id;
    field.value = String(now.daily_budget_micros / 1e6);
    part("spent").textContent =
      `${money(now.spent_today_micros)} of ${money(now.daily_budget_micros)} spent today, ${now.pacing === "even" ? "evenly over the day" : "as fast as clicks come"}`;
    part("state").textContent = now.paused ? "paused" : "running";
    part("state").classList.toggle("on", !now.paused);
    const bar = row.querySelector("progress");
    bar.value = now.daily_budget_micros ? Math.min(1, now.spent_today_micros / now.daily_budget_micros) : 1;
    bar.setAttribute("aria-label", `Share of today's budget of ${now.name} that is spent`);
    part("pause").textContent = now.paused ? "Resume" : "Pause";
    part("pause").setAttribute("aria-label", `${now.paused ? "Resume" : "Pause"} campaign ${now.name}`);
    part("save").setAttribute("aria-label", `Save budget of ${now.name}`);
    part("open").setAttribute("aria-label", `Ads of ${now.name}`);
    one = now;
  };
  const change = (control, body, text) =>
    doing(control, async () => {
      show(await send("PATCH", `/v1/campaigns/${one.id}`, body));
      done(text());
    });
  part("edit").addEventListener("submit", (event) => {
    event.preventDefault();
    change(part("save"), { daily_budget_micros: micros(field) }, () => `${one.name}: ${money(one.daily_budget_micros)} a day.`);
  });
  part("pause").addEventListener("click", () =>
    change(part("pause"), { paused: !one.paused }, () => `${one.name} is ${one.paused ? "paused" : "running"}.`));
  part("open").addEventListener("click", () => doing(part("open"), () => openAds(one)));
  show(one);
  return row;
}

async function addCampaign() {
  const body = {
    name: byId("campaign-name").value.trim(), daily_budget_micros: micros(byId("campaign-budget")),
    pacing: byId("campaign-pacing").value,
  };
  const made = await send("POST", `/v1/advertisers/${whose()}/campaigns`, body);
  byId("campaign-form").reset();
  byId("campaigns").querySelector(".empty")?.remove();
  byId("campaigns").append(campaignRow(made));
  done(`Campaign ${made.name} is started.`);
}

// ---- ads

function closeAds() {
  editing.campaign = null;
  byId("ads-card").hidden = true;
}

async function openAds(campaign) {
  editing.campaign = campaign;
  editing.afterAd = "";
  for (const row of byId("campaigns").children) row.classList.toggle("chosen", row.dataset.id === campaign.id);
  byId("ads-title").textContent = `Ads of ${campaign.name}`;
  byId("ads").replaceChildren();
  byId("row-errors").hidden = true;
  byId("ads-card").hidden = false;
  bidField(byId("ad-bid"));
  await moreAds();
  if (!byId("ads").children.length) byId("ads").append(element("li", "No ad yet.", "empty"));
  byId("ads-title").focus();
}

async function moreAds() {
  const page = await get(`/v1/campaigns/${editing.campaign.id}/ads?limit=50&after=${editing.afterAd}`);
  byId("ads").append(...page.items.map(adRow));
  editing.afterAd = more("more-ads", page.next);
}

function adRow(one) {
  const row = byId("ad").content.firstElementChild.cloneNode(true);
  const part = (name) => row.querySelector(`.${name}`);
  const [bid, url] = [part("amount"), part("url")];
  bidField(bid);
  for (const [input, label, name] of [[bid, "amount-label", "Bid"], [url, "url-label", "Landing page"]]) {
    input.id = `${name.toLowerCase().replace(" ", "-")}-${one.id}`;
    part(label).htmlFor = input.id;
    input.setAttribute("aria-label", `${name} of ${one.title}`);
  }
  const show = (now) => {
    part("title").textContent = now.title;
    part("about").textContent = [`Ad-${now.id}`, now.category, now.description].filter(Boolean).join(" · ");
    part("state").textContent = now.paused ? "paused" : "running";
    part("state").classList.toggle("on", !now.paused);
    bid.value = String(now.bid_micros / 1e6);
    url.value = now.url;
    part("pause").textContent = now.paused ? "Resume" : "Pause";
    part("pause").setAttribute("aria-label", `${now.paused ? "Resume" : "Pause"} ad ${now.title}`);
    part("save").setAttribute("aria-label", `Save bid and landing page of ${now.title}`);
    one = now;
  };
  const change = (control, body, text) =>
    doing(control, async () => {
      show(await send("PATCH", `/v1/ads/${one.id}`, body));
      done(text());
    });
  part("edit").addEventListener("submit", (event) => {
    event.preventDefault();
    change(part("save"), { bid_micros: micros(bid), url: url.value }, () => `${one.title}: ${money(one.bid_micros)} per click.`);
  });
  part("pause").addEventListener("click", () =>
    change(part("pause"), { paused: !one.paused }, () => `${one.title} is ${one.paused ? "paused" : "running"}.`));
  show(one);
  return row;
}

async function addAd() {
  const text = (id) => byId(id).value.trim();
  const body = {
    title: text("ad-title"), category: text("ad-category"), description: text("ad-description"), url: text("ad-url"),
    bid_micros: micros(byId("ad-bid")),
  };
  const made = await send("POST", `/v1/campaigns/${editing.campaign.id}/ads`, body);
  byId("ad-form").reset();
  byId("ads").querySelector(".empty")?.remove();
  byId("ads").append(adRow(made));
  done(`${made.title} is listed as Ad-${made.id}.`);
}

// ---- uploads

async function upload() {
  const file = byId("file").files[0];
  const type = TYPES[file.name.toLowerCase().split(".").pop()];
  if (!type) throw new Error(`${file.name}: give a .csv, .tsv, .jsonl or .ndjson file`);
  const rows = byId("good").checked ? "good" : "all";
  showRowErrors([]);
  const path = `/v1/campaigns/${editing.campaign.id}/ads/upload?rows=${rows}`;
  try {
    const said = await (await call(path, { method: "POST", body: file, headers: { "Content-Type": type } })).json();
    byId("upload-form").reset();
    await openAds(editing.campaign);
    showRowErrors(said.errors);
    done(`Ads listed: ${whole(said.listed)}. Rows not listed: ${whole(said.refused)}.`);
  } catch (error) {
    showRowErrors(error.body?.errors ?? []);
    throw error;
  }
}

function showRowErrors(errors) {
  byId("row-errors").hidden = !errors.length;
  byId("row-errors").querySelector("tbody").replaceChildren(...errors.map((one) => {
    const row = element("tr");
    row.append(element("td", String(one.row)), element("td", one.field ?? ""), element("td", one.reason));
    return row;
  }));
}

// ---- wiring

function unfolds(button, form) {
  byId(button).addEventListener("click", () => {
    const open = byId(form).hidden;
    byId(form).hidden = !open;
    byId(button).setAttribute("aria-expanded", String(open));
    if (open) byId(form).querySelector("input").focus();
  });
}

function submits(form, act) {
  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    doing(byId(form).querySelector("button"), act);
  });
}

for (const [button, form] of [["new-campaign", "campaign-form"], ["new-ad", "ad-form"], ["new-upload", "upload-form"]]) unfolds(button, form);
for (const [form, act] of [["campaign-form", addCampaign], ["ad-form", addAd], ["upload-form", upload]]) submits(form, act);
for (const [button, act] of [["more-campaigns", moreCampaigns], ["more-ads", moreAds]]) {
  byId(button).addEventListener("click", () => doing(byId(button), act));
}
