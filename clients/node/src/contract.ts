// The contract's files, loaded once. They lie beside this package in the repository; TOKENWIRE_PROTOS names another place.

import { loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync, type Options } from "@grpc/proto-loader";
import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";
import type { ProtoGrpcType } from "./generated/gateway.js";

const beside = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
const includeDirs = [process.env.TOKENWIRE_PROTOS ?? beside("../../../protos"), beside("../..")];
const options: Options = { longs: String, enums: String, defaults: true, oneofs: true, includeDirs };

export const services = loadPackageDefinition(
  loadSync("tokenwire/v1/gateway.proto", options),
) as unknown as ProtoGrpcType;

const root = new protobuf.Root();
root.resolvePath = (origin, target) => {
  const folder = includeDirs[target.startsWith("google/rpc/") ? 1 : 0]!;
  return target.startsWith("google/protobuf/") ? protobuf.util.path.resolve(origin, target) : `${folder}/${target}`;
};
root.loadSync(["tokenwire/v1/gateway.proto", "google/rpc/error_details.proto"]);

/** A message's type by its full name, to read bytes that no call brings. */
export const messageType = (name: string): protobuf.Type => root.lookupType(name);
