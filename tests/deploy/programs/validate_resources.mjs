// Reads resources as a JSON list from standard input, writes what is wrong with each as a JSON list: null, or a message.
// Schemas are those that @kubernetes-models packages make of the projects' own definitions.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const packages = {
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
  "cert-manager.io": "cert-manager",
  "networking.istio.io": "istio",
  "security.istio.io": "istio",
};
const results = [];
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = resource.apiVersion.split("/");
  const file = `${group}/${version}/${resource.kind}.js`;
  const path = join(process.argv[2], "node_modules", "@kubernetes-models", packages[group], file);
  const { [resource.kind]: Model } = await import(pathToFileURL(path).href);
  try {
    new Model(resource).validate();
    results.push(null);
  } catch (error) {
    results.push(String(error.message));
  }
}
console.log(JSON.stringify(results));
