// What the scripts of the page share: elements, money, calls of the endpoint.
"use strict";

const byId = (id) => document.getElementById(id);
const state = { key: "", start: null, titles: new Map() };

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function money(micros) {
  const exact = micros % 10000 === 0;
  return new Intl.NumberFormat("en", {
    style: "currency", currency: state.start.currency, minimumFractionDigits: 2, maximumFractionDigits: exact ? 2 : 6,
  }).format(micros / 1e6);
}

const whole = (count) => new Intl.NumberFormat("en", { maximumFractionDigits: 2 }).format(count);
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`);
const amount = (micros) => (micros === null ? "–" : money(micros));

async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${state.key}`, ...options.headers };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const error = new Error(body?.error?.message ?? `the endpoint answered ${response.status}`);
  error.body = body;
  throw error;
}

const get = async (path) => (await call(path)).json();
const send = async (method, path, body) =>
  (await call(path, { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } })).json();

function fail(error) {
  byId("done").textContent = "";
  byId("error").textContent = error.message;
  byId("error").hidden = false;
}

function done(text) {
  byId("error").hidden = true;
  byId("done").textContent = text;
}

// What a control does, its errors said and the control off while it lasts.
async function doing(control, act) {
  control.disabled = true;
  try {
    await act();
  } catch (error) {
    fail(error);
  } finally {
    control.disabled = false;
  }
}
