'use strict';
(() => {
  const el = (id) => document.getElementById(id);
  const cards = new Map();
  const drawings = {
    direct: ['direct path', 'M4 12h15M13 6l6 6-6 6'],
    relay: ['through a relay', 'M3 17l6-9 6 9 6-9M9 8h.01M15 17h.01'],
    none: ['no path yet', 'M4 12h3M11 12h2M17 12h3'],
  };
  let fleet = JSON.parse(el('fleet').textContent);

  function set(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  function link(url, text) {
    const a = document.createElement(url ? 'a' : 'span');
    if (url) a.href = url;
    a.textContent = text;
    return a;
  }

  function card(node) {
    let entry = cards.get(node.node);
    if (!entry) {
      entry = { li: el('card').content.firstElementChild.cloneNode(true), seen: '' };
      cards.set(node.node, entry);
    }
    const seen = JSON.stringify(node);
    if (entry.seen === seen) return entry.li;
    entry.seen = seen;
    const part = (selector) => entry.li.querySelector(selector);
    const name = part('.name');
    const current = name.firstElementChild;
    if (!current || current.textContent !== node.name || (current.getAttribute('href') || null) !== node.url) {
      name.replaceChildren(link(node.url, node.name));
    }
    entry.li.dataset.node = node.name;
    entry.li.dataset.network = node.network;
    entry.li.classList.toggle('can-open', Boolean(node.url));
    part('.go').hidden = !node.url;
    part('.state').className = 'fact state is-' + node.state;
    set(part('.state .word'), node.state);
    const [words, drawing] = drawings[node.path] || drawings.none;
    set(part('.path .word'), words);
    part('.path path').setAttribute('d', drawing);
    const services = part('.services');
    services.hidden = node.services.length === 0;
    services.replaceChildren(...node.services.map((service) => {
      const li = document.createElement('li');
      li.append(link(service.url, service.url || service.name === service.kind ? service.name : service.name + ' · ' + service.kind));
      return li;
    }));
    set(part('.id'), node.node);
    part('.id').title = 'node id ' + node.node;
    return entry.li;
  }

  function draw() {
    const query = el('query').value.trim().toLowerCase();
    const nodes = fleet.nodes;
    const shown = nodes.filter((node) => (node.name + ' ' + node.network).toLowerCase().includes(query));
    const groups = new Map();
    for (const node of shown) {
      if (!groups.has(node.network)) groups.set(node.network, []);
      groups.get(node.network).push(card(node));
    }
    const root = el('networks');
    const named = fleet.networks.length > 1;
    const sections = [];
    for (const [network, list] of groups) {
      const id = 'network-' + network;
      let section = el(id);
      if (!section) {
        section = document.createElement('section');
        section.id = id;
        const title = document.createElement('h2');
        title.id = id + '-title';
        const ul = document.createElement('ul');
        ul.className = 'cards';
        section.setAttribute('aria-labelledby', title.id);
        section.append(title, ul);
      }
      set(section.firstElementChild, 'Network ' + network);
      section.firstElementChild.hidden = !named;
      const ul = section.lastElementChild;
      const same = ul.children.length === list.length && list.every((li, at) => ul.children[at] === li);
      if (!same) ul.replaceChildren(...list);
      sections.push(section);
    }
    const kept = root.children.length === sections.length && sections.every((s, at) => root.children[at] === s);
    if (!kept) root.replaceChildren(...sections);
    const known = new Set(nodes.map((node) => node.node));
    for (const id of cards.keys()) if (!known.has(id)) cards.delete(id);
    const online = nodes.filter((node) => node.state === 'online').length;
    const workers = nodes.length === 1 ? '1 worker' : nodes.length + ' workers';
    set(el('lead'), nodes.length === 0 ? 'Nothing to manage yet.'
      : online === nodes.length ? workers + ', all online' : workers + ', ' + online + ' online');
    el('empty').hidden = nodes.length > 0;
    el('find').hidden = nodes.length < 9;
    set(el('foot'), 'traffic-gateway ' + fleet.gateway);
    document.title = (nodes.length ? online + '/' + nodes.length + ' online · ' : '') + 'Wonder Mesh';
  }

  function live(is, text) {
    el('live').className = 'pill ' + (is ? 'is-live' : 'is-wait');
    set(el('live-text'), text);
  }

  el('query').addEventListener('input', draw);
  el('find').addEventListener('submit', (event) => event.preventDefault());
  draw();

  const events = new EventSource('/_mesh/events');
  events.addEventListener('open', () => live(true, 'live'));
  events.addEventListener('error', () => live(false, 'reconnecting'));
  events.addEventListener('fleet', (event) => {
    fleet = JSON.parse(event.data);
    draw();
  });
})();
