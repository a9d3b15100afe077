// Reads {"packages": {api: [package, prefix]}, "objects": [...]} from standard input and prints a
// list of faults, each [number of the object, text], as JSON.
//
// The checks come from packages that are generated from the API types of the projects themselves,
// as their CRDs are. They say nothing of unknown fields, which the API server refuses or drops; so
// each object is shown to them through a proxy that notes what they ask for: a field that nobody
// asks for is unknown.
import { existsSync, readFileSync } from "node:fs";

const noted = new Map();
const proxies = new WeakMap();

function watched(value) {
  if (typeof value !== "object" || value === null) return value;
  if (proxies.has(value)) return proxies.get(value);
  const asked = new Set();
  noted.set(value, asked);
  const proxy = new Proxy(value, {
    get(target, name) {
      asked.add(name);
      return watched(target[name]);
    },
  });
  proxies.set(value, proxy);
  return proxy;
}

function unknown(value, path, found) {
  if (typeof value !== "object" || value === null) return;
  for (const name of Object.keys(value)) {
    const at = path === "" ? name : `${path}.${name}`;
    if (noted.get(value)?.has(name)) unknown(value[name], at, found);
    else found.push(`${at}: unknown field`);
  }
}

const asked = JSON.parse(readFileSync(0, "utf8"));
const faults = [];
for (const [number, object] of asked.objects.entries()) {
  const [name, prefix] = asked.packages[object.apiVersion];
  const file = new URL(`node_modules/${name}/_schemas/${prefix}${object.kind}.js`, import.meta.url);
  if (!existsSync(file)) {
    faults.push([number, `unknown kind ${object.kind} in ${object.apiVersion}`]);
    continue;
  }
  const { validate } = await import(file);
  validate(watched(object));
  for (const error of validate.errors ?? []) {
    const at = error.instancePath.slice(1).replaceAll("/", ".");
    const what = Object.values(error.params).flat().join(", ");
    faults.push([number, `${at}: ${error.keyword}: ${what}`]);
  }
  const found = [];
  unknown(object, "", found);
  faults.push(...found.map((text) => [number, text]));
}
console.log(JSON.stringify(faults));
