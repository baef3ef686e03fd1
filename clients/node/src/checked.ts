// What may be sent. proto-loader takes much else for zero or leaves it out, and a stream ends with what it cannot write at all.

import { inspect } from "node:util";
import protobuf from "protobufjs";
import { messageType } from "./contract.js";
import { TokenwireError } from "./errors.js";

const Long = protobuf.util.Long as unknown as { isLong(value: unknown): boolean };
const LONE_SURROGATE = /\p{Surrogate}/u;

export function refused(field: string, said: string): TokenwireError {
  return new TokenwireError("INVALID_ARGUMENT", `${field}: ${said}`, "INVALID_REQUEST", [field]);
}

/** Throws a TokenwireError that names the first field whose value its type does not allow, at any depth. */
export function refuseBadRequest(request: unknown): void {
  refuseBadMessage(messageType("tokenwire.v1.TextRequest"), request, "");
}

/** Throws a TokenwireError for what is no number of tokens or outputs. */
export function refuseBadCount(field: string, value: unknown): void {
  refuseBadScalar("uint32", value, field);
}

function refuseBadMessage(type: protobuf.Type, value: unknown, path: string): void {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw notAllowed(path || "request", value, "an object");
  for (const [name, given] of Object.entries(value)) {
    const at = (path && `${path}.`) + name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    if (given === undefined || given === null || type.oneofs?.[name] !== undefined) continue;
    const field = type.fields[name]?.resolve();
    if (field === undefined) throw refused(at, "there is no such field");
    if (field instanceof protobuf.MapField) refuseBadMap(field, given, at);
    else if (!field.repeated) refuseBadValue(field, given, at);
    else if (!Array.isArray(given)) throw notAllowed(at, given, "an array");
    else given.forEach((each, index) => refuseBadValue(field, each, `${at}[${index}]`));
  }
}

function refuseBadMap(field: protobuf.MapField, value: unknown, path: string): void {
  if (typeof value !== "object") throw notAllowed(path, value, "an object");
  for (const [key, each] of Object.entries(value as object)) {
    refuseBadScalar(field.keyType, field.keyType === "string" ? key : Number(key), `${path}[${key}]`);
    refuseBadValue(field, each, `${path}[${key}]`);
  }
}

function refuseBadValue(field: protobuf.FieldBase, value: unknown, path: string): void {
  const type = field.resolvedType;
  if (type instanceof protobuf.Type) return refuseBadMessage(type, value, path);
  if (type === null) return refuseBadScalar(field.type, value, path);
  const known = typeof value === "string" ? Object.hasOwn(type.values, value) : Number.isInteger(value);
  if (!known) throw notAllowed(path, value, `one of ${Object.keys(type.values).join(", ")}`);
}

function refuseBadScalar(type: string, value: unknown, path: string): void {
  if (type === "string") {
    if (typeof value !== "string") throw notAllowed(path, value, "a text");
    if (LONE_SURROGATE.test(value)) throw refused(path, "not valid Unicode: it has half of a surrogate pair");
  } else if (type === "bool") {
    if (typeof value !== "boolean") throw notAllowed(path, value, "true or false");
  } else if (type === "bytes") {
    if (typeof value !== "string" && !(value instanceof Uint8Array)) throw notAllowed(path, value, "bytes, or a text in base64");
  } else if (type === "float" || type === "double") {
    if (typeof value !== "number") throw notAllowed(path, value, "a number");
  } else {
    const bits = type.endsWith("64") ? 64 : 32;
    const fits = /^(u|fixed)/.test(type) ? BigInt.asUintN : BigInt.asIntN;
    const found = wholeNumber(value, bits);
    if (found !== undefined && fits(bits, found) === found) return;
    throw notAllowed(path, value, `a whole number of type ${type}${bits === 64 ? ", as a number, a text or a Long" : ""}`);
  }
}

function wholeNumber(value: unknown, bits: number): bigint | undefined {
  if (typeof value === "number" && Number.isInteger(value)) return BigInt(value);
  if (bits === 32) return undefined;
  if (typeof value === "string" && /^-?\d+$/.test(value)) return BigInt(value);
  return Long.isLong(value) ? BigInt(String(value)) : undefined;
}

function notAllowed(path: string, value: unknown, allowed: string): TokenwireError {
  return refused(path, `${inspect(value, { depth: 0 }).slice(0, 80)} is not allowed: ${allowed}`);
}
