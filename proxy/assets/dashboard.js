'use strict';
// The dashboard asks for api/v1/status once a second and follows api/v1/events.
// Everything that comes from outside becomes text nodes, never HTML.

const POLL_MS = 1000;      // between two questions
const PATIENCE_MS = 4000;  // an answer that takes longer counts as none
const SHOWN = 300;         // entries of the timeline on the page
const SAMPLES = 60;        // points of a sparkline

const $ = (id) => document.getElementById(id);

// --- DOM -------------------------------------------------------------------------------------------------

/** An element: h('td', {class: 'n'}, 'text', child, null…). */
function h(tag, attributes, ...children) {
  const svg = tag === 'svg' || tag === 'polyline';
  const element = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  for (const child of children.flat(9)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** Makes `old` equal to `wanted`, touching only what differs: selections and scroll positions survive. */
function patch(old, wanted) {
  for (const {name} of [...old.attributes]) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
  for (const {name, value} of wanted.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const now = [...wanted.childNodes];
  now.forEach((child, at) => {
    const there = old.childNodes[at];
    if (!there) old.append(child);
    else if (there.nodeName !== child.nodeName) there.replaceWith(child);
    else if (child.nodeType === Node.TEXT_NODE) { if (there.data !== child.data) there.data = child.data; }
    else patch(there, child);
  });
  while (old.childNodes.length > now.length) old.lastChild.remove();
}

const put = (element, ...children) => patch(element, h(element.nodeName, attributesOf(element), ...children));
const attributesOf = (element) => Object.fromEntries([...element.attributes].map(({name, value}) => [name, value]));
const pill = (kind, text, title) => h('span', {class: `pill ${kind}`, title}, text);

// --- words -----------------------------------------------------------------------------------------------

function span(ms) {
  if (ms === null || ms === undefined) return '–';
  const s = Math.floor(ms / 1000), m = Math.floor(s / 60), hours = Math.floor(m / 60), days = Math.floor(hours / 24);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (s < 10) return `${(Math.floor(ms / 100) / 10).toFixed(1)} s`;
  if (s < 60) return `${s} s`;
  if (m < 60) return `${m} min ${s % 60} s`;
  if (hours < 24) return `${hours} h ${m % 60} min`;
  return `${days} d ${hours % 24} h`;
}

function bytes(n) {
  if (n === null || n === undefined) return '–';
  if (n < 1000) return `${Math.round(n)} B`;
  let unit = 'B', value = n;
  for (unit of ['KiB', 'MiB', 'GiB', 'TiB', 'PiB']) { value /= 1024; if (value < 1000) break; }
  return `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : Math.round(value)} ${unit}`;
}

const count = (n) => Number(n).toLocaleString('en-GB').replace(/,/g, '\u202f');
const number = (n, extra) => h('td', {class: n ? 'n' : 'n zero'}, count(n), extra);
const failures = (n) => h('td', {class: n ? 'n bad' : 'n zero', title: 'dials that failed'}, count(n));
const two = (n) => String(n).padStart(2, '0');

function clock(at) {
  const t = new Date(at);
  const day = t.toDateString() === new Date().toDateString()
    ? '' : `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())} `;
  return `${day}${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}.${String(t.getMilliseconds()).padStart(3, '0')}`;
}

// --- rates -----------------------------------------------------------------------------------------------

const series = new Map();  // key → samples {t, in, out, rateIn, rateOut}

/** Bytes per second since the last answer; null before the second one. */
function rate(key, t, bytesIn, bytesOut) {
  const samples = series.get(key) || [];
  const last = samples[samples.length - 1];
  if (last && t > last.t) {
    const s = (t - last.t) / 1000;
    samples.push({t, in: bytesIn, out: bytesOut, rateIn: Math.max(0, bytesIn - last.in) / s, rateOut: Math.max(0, bytesOut - last.out) / s});
  } else if (!last || t < last.t) {
    series.set(key, [{t, in: bytesIn, out: bytesOut, rateIn: null, rateOut: null}]);
    return series.get(key)[0];
  }
  while (samples.length > SAMPLES) samples.shift();
  series.set(key, samples);
  return samples[samples.length - 1];
}

const speed = (value) => h('td', {class: value ? 'n' : 'n zero'}, value === null ? '–' : `${bytes(value)}/s`);

function spark(key) {
  const values = (series.get(key) || []).filter((s) => s.rateIn !== null).map((s) => s.rateIn + s.rateOut);
  const top = Math.max(1, ...values);
  const points = values.map((v, i) => `${(84 - (values.length - 1 - i) * 84 / (SAMPLES - 1)).toFixed(1)},${(15 - 14 * v / top).toFixed(1)}`);
  return h('svg', {class: 'spark', viewBox: '0 0 84 16', 'aria-hidden': 'true'}, h('polyline', {points: points.join(' ')}));
}

// --- sections --------------------------------------------------------------------------------------------

const LIFE = {starting: 'going', ready: 'up', draining: 'drain', stopping: 'down'};

function process(p) {
  const fact = (name, value, title) => h('span', {title}, `${name} `, h('b', {}, value));
  return [
    h('span', {}, h('b', {}, p.node)), pill(LIFE[p.life] || '', p.life),
    fact('up', span(p.uptime_ms), `since ${p.started_at}`), fact('sessions', count(p.sessions)),
    p.open_descriptors === null ? null
      : fact('descriptors', `${count(p.open_descriptors)}${p.max_descriptors === null ? '' : ` / ${count(p.max_descriptors)}`}`),
    fact('version', p.version), fact('pid', p.pid),
    p.log_lines_dropped ? h('span', {class: 'bad'}, `${count(p.log_lines_dropped)} log lines dropped`) : null,
    p.listen_overflows ? h('span', {class: 'bad', title: 'An accept queue of this host was full; those clients wait and try again'},
      `${count(p.listen_overflows)} connections dropped by the kernel`) : null,
  ];
}

const PRIMARY = {
  confirmed: ['up', 'confirmed'], pending: ['going', 'being confirmed'], held: ['going', 'held'], none: ['down', 'no primary'],
};

const CONFIRMED_BY = {rest: 'Patroni’s REST', sql: 'SQL', 'member-key': 'its member key'};

/** Why a route is missing, as the core words it (`reason` and the names that belong to it). */
function noRoute(why) {
  if (!why) return null;
  const l = why.leader || 'the leader';
  return {
    'discovering': 'nothing has been learned of the cluster yet', 'no-leader-yet': 'the cluster has no leader yet',
    'leader-key-gone': why.last ? `no leader; the last one was ${why.last}` : 'no leader',
    'pending': `${l} has not been confirmed as writable yet`, 'leader-unknown': `the address of ${l} is not known`,
    'switchover-announced': `a switchover away from ${l} is under way`, 'stale': `nobody has confirmed ${l} for too long`,
    'standby-cluster': 'a standby cluster has no primary', 'maintenance': `${why.member} was taken out by an operator`,
  }[why.reason] || why.reason;
}

/** Whether it is a multi-master cluster: every member takes writes. */
const many = (status) => status.members.length > 0 && status.members.every((m) => m.role === 'writable');

function primaryCard(status) {
  const p = status.primary;
  const standby = status.settings.standby_cluster;
  if (many(status)) {
    return h('div', {class: 'up'}, h('h3', {}, 'Primary'), h('div', {class: 'big mid'}, h('b', {}, 'every member takes writes')));
  }
  const [kind, word] = standby ? ['idle', 'standby cluster'] : PRIMARY[p.state] || ['idle', p.state];
  const member = standby ? null : status.members.find((m) => m.name === p.member);
  const by = p.confirmed_by && `by ${CONFIRMED_BY[p.confirmed_by] || p.confirmed_by.replace('-', ' ')}${p.confirmed_ms === null ? '' : `, ${span(p.confirmed_ms)} ago`}`;
  return h('div', {class: kind},
    h('h3', {}, 'Primary'),
    h('div', {class: 'big'}, h('b', {}, (!standby && p.member) || '–'), pill(kind, word), h('span', {class: 'soft'}, `for ${span(p.since_ms)}`)),
    h('div', {class: 'facts'},
      member ? h('span', {class: 'mono'}, member.addresses.join(', ')) : null,
      member && member.timeline !== null ? h('span', {}, 'timeline ', h('b', {}, member.timeline)) : null,
      by ? h('span', {}, 'confirmed ', h('b', {}, by)) : null),
    p.why_not ? h('p', {class: 'why'}, noRoute(p.why_not)) : null);
}

function storeCard(cluster, status) {
  const s = status.store;
  const kind = {alive: 'up', lost: 'down'}[s.state] || 'going';
  const sign = s.age_ms === null ? 'never answered' : `${span(s.age_ms)} ago`;
  return h('div', {},
    h('h3', {}, 'Source'),
    h('div', {class: 'big mid'}, h('b', {}, cluster.source), pill(kind, s.state === 'never' ? 'not reached yet' : s.state)),
    h('div', {class: 'facts'},
      cluster.endpoint ? h('span', {class: 'mono'}, cluster.endpoint) : null,
      h('span', {}, 'last sign of life ', h('b', {}, sign)),
      // A fixed list has no store whose revision or connection could be told.
      cluster.source === 'static' ? null : [h('span', {}, 'revision ', h('b', {}, s.revision)),
        h('span', {}, 'snapshots ', h('b', {}, count(s.views))), h('span', {}, 'reconnects ', h('b', {}, count(cluster.store_reconnects)))]),
    s.error ? h('p', {class: 'why bad'}, s.error) : null);
}

function clusterCard(cluster, status) {
  const fixed = cluster.source === 'static';
  const set = status.settings;
  const flags = [
    set.paused && pill('going', 'paused', 'Patroni fails over no more'), set.standby_cluster && pill('flag', 'standby cluster'),
    set.synchronous && pill('flag', 'synchronous'), set.failsafe && pill('flag', 'failsafe mode'),
  ].filter(Boolean);
  const present = status.members.filter((m) => m.present).length;
  const serving = status.members.filter((m) => m.serves.length).length;
  return h('div', {},
    h('h3', {}, 'Cluster'),
    h('div', {class: 'big mid'}, h('b', {}, `${present} member${present === 1 ? '' : 's'}`), h('span', {class: 'soft'}, `${serving} in use`)),
    flags.length ? h('div', {class: 'flags'}, flags) : null,
    h('div', {class: 'facts'},
      many(status) ? null : h('span', {}, 'leader ', h('b', {}, status.leader || 'none')),
      h('span', {}, 'generation ', h('b', {}, count(status.generation))),
      fixed ? null : h('span', {}, 'ttl ', h('b', {}, `${set.ttl} s`))));
}

function memberKind(m) {
  if (m.admin === 'maint') return 'maint';
  if (m.admin === 'drain') return 'drain';
  if (m.health === 'down' || !m.present) return 'down';
  if (m.state !== 'running') return 'going';
  return m.serves.length ? 'up' : 'idle';
}

// Its own word, while it is fresh; else its key, which follows a promotion a second late.
function roleNow(m) {
  const word = m.answer && m.answer.status && m.answer.age_ms < 3000 ? m.answer.status.role : m.role;
  return word === 'unknown' ? m.role : word;
}

function roleCell(m) {
  const now = roleNow(m);
  const role = {'standby-leader': 'standby leader'}[now] || now;
  return h('td', {}, now === 'primary' ? h('b', {}, role) : role,
    m.leader ? [' ', pill('flag', 'leader')] : null, m.sync ? [' ', pill('flag', 'sync')] : null);
}

function memberNote(m) {
  if (m.admin === 'maint') return 'taken out for maintenance by an operator';
  if (m.admin === 'drain') return 'drained by an operator: no new sessions';
  if (!m.present) return 'it is no longer listed';
  // Whoever is not asked any more has said what it said long ago.
  const error = m.answer && m.answer.age_ms < 15000 ? m.answer.error : null;
  const asked = error ? `${m.answer.by === 'sql' ? 'over SQL' : 'Patroni'}: ${error.replace('-', ' ')}, ${span(m.answer.age_ms)} ago` : null;
  return [m.leader ? null : m.excluded, asked].filter(Boolean).join('; ');
}

function members(cluster, status, t) {
  if (!status.members.length) return h('div', {class: 'empty'}, 'No member has been seen yet.');
  const health = {up: ['', 'up'], down: ['bad', 'down'], unknown: ['zero', 'unknown']};
  const rows = status.members.map((m) => {
    const traffic = cluster.traffic[m.name] || {sessions: 0, sessions_total: 0, dial_errors: 0, bytes_in: 0, bytes_out: 0};
    const r = rate(`m/${cluster.name}/${m.name}`, t, traffic.bytes_in, traffic.bytes_out);
    const [healthClass, healthWord] = health[m.health] || ['', m.health];
    const streams = m.replication === 'not-streaming' && roleNow(m) === 'replica' && !m.leader ? h('span', {class: 'bad'}, ', not streaming') : null;
    return h('tr', {class: `row ${memberKind(m)}`},
      h('td', {}, m.name), roleCell(m), h('td', {}, m.state, streams), h('td', {class: 'mono'}, m.addresses.join(', ')),
      h('td', {class: 'n'}, m.timeline === null ? '–' : m.timeline),
      h('td', {class: m.lag_bytes ? 'n' : 'n zero'}, roleNow(m) === 'primary' || m.leader ? '' : bytes(m.lag_bytes)),
      h('td', {class: healthClass}, healthWord),
      number(traffic.sessions), number(traffic.sessions_total), failures(traffic.dial_errors), speed(r.rateIn), speed(r.rateOut),
      h('td', {}, m.serves.map(([l, role], i) => [i ? ', ' : '', l, role === 'fallback' ? ' (fallback)' : ''])),
      h('td', {class: 'wrap'}, memberNote(m)));
  });
  return h('div', {class: 'scroll'}, h('table', {},
    head('Member', 'Role', 'State', 'Address', '#TL', '#Lag', 'Health', '#Sessions', '#Total', '#Errors', '#In', '#Out', 'Serves', 'Remarks'),
    h('tbody', {}, rows)));
}

/** Column heads; one that starts with # is for numbers. */
const head = (...names) => h('thead', {}, h('tr', {}, names.map((n) => h('th', {class: n.startsWith('#') ? 'n' : null}, n.replace('#', '')))));

const LISTENER = {open: ['up', 'open'], held: ['going', 'held'], refusing: ['down', 'refusing'], down: ['down', 'down']};

function listenerRow(l, t) {
  const [kind, word] = LISTENER[l.state] || ['idle', l.state];
  const key = `l/${l.name}`;
  const r = rate(key, t, l.bytes_in, l.bytes_out);
  const closes = Object.entries(l.closes).filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
  const held = l.held_total ? `${count(l.held_total)} in all${l.held_ms_mean === null ? '' : `, ${span(l.held_ms_mean)} on average, longest ${span(l.held_ms_max)}`}` : null;
  return h('tr', {class: `row ${kind}`},
    h('td', {}, l.name), h('td', {class: 'mono'}, l.bind.join(', ')), h('td', {}, l.target),
    h('td', {class: 'state'}, pill(kind, word), ' ', l.state === 'open' ? shortList(l.candidates) : h('span', {class: 'soft'}, l.why)),
    number(l.sessions, h('span', {class: 'zero'}, ` / ${count(l.max_connections)}`)), number(l.accepted),
    h('td', {class: l.held ? 'n bad' : 'n zero', title: held}, count(l.held), l.held_total ? h('span', {class: 'zero'}, ` of ${count(l.held_total)}`) : null),
    speed(r.rateIn), speed(r.rateOut), h('td', {}, spark(key)),
    h('td', {class: 'wrap'}, closes.length ? closes.slice(0, 6).map(([reason, n]) => h('span', {class: 'chip'}, reason, ' ', h('b', {}, count(n)))) : null));
}

const shortList = (names) => h('span', {title: names.join(', ')}, names.length > 4 ? `${names.slice(0, 3).join(', ')} and ${names.length - 3} more` : names.join(', '));

function listeners(list, t) {
  if (!list.length) return h('div', {class: 'empty'}, 'No listener routes to this cluster.');
  return h('div', {class: 'scroll'}, h('table', {},
    head('Listener', 'Address', 'Target', 'State', '#Sessions', '#Accepted', '#Held', '#In', '#Out', 'Last minute', 'Closed because'),
    h('tbody', {}, list.map((l) => listenerRow(l, t)))));
}

function alarms(status, p) {
  const failed = !p.reload || !p.reload.text ? [] : [p.reload.ok
    ? h('li', {}, `The last reload was not complete: ${p.reload.text}`)
    : h('li', {class: 'down'}, 'The last reload failed and the old configuration stays:', h('pre', {}, p.reload.text))];
  const list = [
    ...failed, ...status.alarms.map((a) => h('li', {class: 'down'}, a)),
    ...status.complaints.map((c) => h('li', {}, 'Not understood: ', h('code', {}, c.key), ` – ${c.problem}`)),
  ];
  return list.length ? h('ul', {class: 'alarms'}, list) : null;
}

function clusterSection(cluster, answer) {
  const t = answer.process.uptime_ms;
  const own = answer.listeners.filter((l) => l.cluster === cluster.name);
  const status = cluster.status;
  const old = cluster.described_ms > 5000 ? pill('down', `seen ${span(cluster.described_ms)} ago`) : null;
  const heading = h('h1', {}, cluster.name, h('small', {}, `cluster on ${cluster.source}`), old);
  if (!status) {
    return h('section', {class: 'cluster'}, heading, h('div', {class: 'card'}, h('div', {class: 'empty'}, 'The cluster has not been looked at yet.')),
      h('div', {class: 'card'}, h('h2', {}, 'Listeners'), listeners(own, t)));
  }
  return h('section', {class: 'cluster'}, heading,
    h('div', {class: 'card'}, h('div', {class: 'summary'}, primaryCard(status), storeCard(cluster, status), clusterCard(cluster, status)), alarms(status, answer.process)),
    h('div', {class: 'card'}, h('h2', {}, 'Members'), members(cluster, status, t)),
    h('div', {class: 'card'}, h('h2', {}, 'Listeners'), listeners(own, t)));
}

// --- virtual IP ------------------------------------------------------------------------------------------

const ROUTER = {active: ['up', 'active'], backup: ['idle', 'backup'], initialize: ['down', 'not taking part']};
const PEER = {alive: 'up', lost: 'down', connecting: 'going', unknown: 'idle'};

function routerRow(r) {
  const [kind, word] = ROUTER[r.state] || ['idle', r.state];
  const here = r.state === 'active';
  const holder = here ? h('b', {}, 'this host') : r.holder
    ? [r.holder.node ? h('b', {}, r.holder.node) : null, ' ', h('span', {class: 'mono'}, r.holder.address), `, priority ${r.holder.priority}`]
    : h('span', {class: 'bad'}, 'nobody is heard');
  const lowered = r.priority === r.base_priority ? null : h('span', {class: 'zero'}, ` of ${r.base_priority}`);
  const remarks = [r.link_fault && r.link_fault.text, r.yielded ? 'handed over by an operator' : r.unfit].filter(Boolean).join('; ');
  return h('tr', {class: `row ${kind}`},
    h('td', {}, r.name), h('td', {class: 'mono'}, r.addresses.join(', ')), h('td', {}, pill(kind === 'idle' ? 'flag' : kind, word)),
    h('td', {class: 'n'}, span(r.since_ms)), h('td', {class: 'n'}, r.priority, lowered), h('td', {}, holder),
    h('td', {}, `${r.interface}, VRID ${r.router_id}, version ${r.version}`), h('td', {class: 'wrap'}, remarks));
}

function vipPanel(vip) {
  const heading = (note) => h('h2', {}, 'Virtual IP', h('small', {}, note));
  if (vip.state !== 'running') {
    const why = vip.state === 'absent' ? 'pointsman-vip does not run on this host, so this host cannot hold the addresses.' : vip.why;
    return [heading(''), h('div', {class: 'empty bad'}, why)];
  }
  const s = vip.status;
  const proxy = s.proxy.state === 'unwell' ? [h('li', {class: 'down'}, `For pointsman-vip this proxy does not serve: ${s.proxy.why}`)] : [];
  const stuck = s.alive === false ? [h('li', {class: 'down'}, 'pointsman-vip is stuck: what is shown here is old.')] : [];
  const list = [...stuck, ...proxy, ...s.routers.flatMap((r) => r.alarms.map((a) => h('li', {class: 'down'}, `${r.name}: ${a.text}`)))];
  const hosts = s.peers.map((p) => [pill(PEER[p.state] || 'idle', `${p.node}: ${p.state}`, [p.address, p.how].filter(Boolean).join(', ')), ' ']);
  return [heading(s.peers.length ? hosts : 'VRRP alone: no peers are configured'),
    list.length ? h('ul', {class: 'alarms'}, list) : null,
    h('div', {class: 'scroll'}, h('table', {},
      head('Virtual router', 'Addresses', 'State', '#For', '#Priority', 'Holder', 'Network', 'Remarks'), h('tbody', {}, s.routers.map(routerRow))))];
}

/** Another process's page: whatever is wrong with it leaves the rest of this one alone. */
async function virtualIp() {
  try {
    const vip = await ask('api/v1/vip');
    if (vip.state !== 'none') put($('vip'), vipPanel(vip));
    $('vip').hidden = vip.state === 'none';
  } catch (problem) {
    $('vip').hidden = true;
  }
}

function title(answer) {
  const fine = (s) => s.primary.state === 'confirmed' || s.settings.standby_cluster || (many(s) && s.members.some((m) => m.serves.length));
  const ok = answer.clusters.every((c) => c.status && fine(c.status));
  const names = answer.clusters.map((c) => (c.status && (many(c.status) ? c.name : c.status.primary.member)) || '–').join(', ');
  return `${ok ? '' : '⚠ '}${names} · ${answer.process.node} · Pointsman`;
}

// --- timeline --------------------------------------------------------------------------------------------

const entries = new Map();  // number → entry
let started = null;         // of the process whose entries these are
let source = null;          // the EventSource
let skew = 0;               // their clock minus ours, in ms

const KINDS = {'primary-confirmed': 'good', 'store-back': 'good', 'replica-in': 'good'};

function timeline(many) {
  const all = [...entries.values()].sort((a, b) => b.seq - a.seq);
  for (const entry of all.splice(SHOWN)) entries.delete(entry.seq);
  const now = Date.now() + skew;
  const rows = all.map((e) => {
    const age = Math.max(0, now - Date.parse(e.at));
    return h('tr', {class: `${e.loudness === 'warn' ? 'warn' : KINDS[e.kind] || ''}${age < 4000 ? ' fresh' : ''}`},
      h('td', {class: 'when'}, age < 1000 ? 'now' : `${span(age)} ago`), h('td', {class: 'when mono', title: e.at}, clock(e.at)),
      many ? h('td', {class: 'when'}, e.cluster) : null, h('td', {}, e.text));
  });
  put($('timeline'), rows.length ? rows : h('tr', {}, h('td', {}, ''), h('td', {class: 'soft'}, 'Nothing has happened since the start.')));
  put($('timeline-note'), all.length > 1 ? `${all.length === SHOWN ? `the last ${SHOWN}` : count(all.length)} entries, newest first` : '');
}

async function loadTimeline() {
  const answer = await ask('api/v1/timeline');
  entries.clear();
  for (const entry of answer.entries) entries.set(entry.seq, entry);
  if (source) source.close();
  source = new EventSource(`api/v1/events?since=${answer.last}`);
  source.addEventListener('note', (event) => { const entry = JSON.parse(event.data); entries.set(entry.seq, entry); });
  source.addEventListener('missed', () => { started = null; });  // read it all again
}

// --- the loop --------------------------------------------------------------------------------------------

let heard = null;  // when the last answer came

async function ask(path) {
  const answer = await fetch(path, {cache: 'no-store', signal: AbortSignal.timeout(PATIENCE_MS)});
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  return answer.json();
}

function connection(error) {
  const silent = heard === null ? null : Date.now() - heard;
  $('link').className = error ? 'link off' : 'link';
  put($('link'), error ? 'no answer' : 'live');
  document.body.classList.toggle('stale', Boolean(error) && heard !== null);
  $('lost').hidden = !error;
  if (!error) return;
  put($('lost'), silent === null ? 'Pointsman does not answer.' : `Pointsman has not answered for ${span(silent)}: what you see is as old as that.`);
  document.title = '⚠ no answer · Pointsman';
}

async function tick() {
  let error = null;
  try {
    const answer = await ask('api/v1/status');
    heard = Date.now();
    skew = Date.parse(answer.process.now) - heard;
    // A stream that was turned away stays closed: read the timeline instead.
    if (started !== answer.process.started_at || source.readyState === EventSource.CLOSED) {
      if (started !== answer.process.started_at) series.clear();
      await loadTimeline();
      started = answer.process.started_at;
    }
    put($('process'), process(answer.process));
    put($('clusters'), answer.clusters.length ? answer.clusters.map((c) => clusterSection(c, answer))
      : h('div', {class: 'card'}, h('div', {class: 'empty'}, 'No cluster is configured.')));
    timeline(answer.clusters.length > 1);
    await virtualIp();
    document.title = title(answer);
  } catch (problem) {
    error = problem;
  }
  connection(error);
  setTimeout(tick, POLL_MS);
}

tick();
