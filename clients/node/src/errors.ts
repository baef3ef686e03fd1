// Errors with the details that a server sends: google.rpc's ErrorInfo, BadRequest and RetryInfo.

import { Metadata, status } from "@grpc/grpc-js";
import { messageType } from "./contract.js";
import type { Status__Output } from "./generated/tokenwire/v1/Status.js";

const DETAILS = "grpc-status-details-bin";

/** What ended a call, or an output. */
export class TokenwireError extends Error {
  constructor(
    /** Name of the gRPC code. */
    readonly code: string,
    message: string,
    /** A stable string that programs may compare. */
    readonly reason = "",
    /** The wrong fields, by their path in the request. */
    readonly fields: string[] = [],
    /** When another try may succeed; undefined: the server did not say. */
    readonly retryAfterMs?: number,
  ) {
    super(message);
    this.name = "TokenwireError";
  }
}

/** The error of a call, with its details. */
export function errorOf(error: unknown): TokenwireError {
  if (error instanceof TokenwireError) return error;
  const { code, details, metadata } = error as { code?: number; details?: string; metadata?: Metadata };
  const bytes = metadata?.get(DETAILS)[0];
  if (bytes instanceof Buffer) {
    // google.rpc.Status is the contract's own Status, field for field.
    const type = messageType("tokenwire.v1.Status");
    return fromStatus(type.toObject(type.decode(bytes), { defaults: true, arrays: true }) as Details);
  }
  return new TokenwireError(status[code ?? status.UNKNOWN]!, details ?? String(error));
}

/** The error inside a terminal event; undefined where there is none. */
export function errorOfFinish(error: Status__Output | null): TokenwireError | undefined {
  if (error === null) return undefined;
  const details = error.details as unknown as Any[];
  return fromStatus({ code: error.code, message: error.message, details });
}

interface Any {
  type_url?: string;
  typeUrl?: string;
  value: Uint8Array;
}

interface Details {
  code: number;
  message: string;
  details: Any[];
}

function fromStatus({ code, message, details }: Details): TokenwireError {
  let reason = "";
  let fields: string[] = [];
  let retryAfterMs: number | undefined;
  for (const detail of details) {
    const name = (detail.typeUrl ?? detail.type_url ?? "").split("/").pop()!;
    if (!["google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo"].includes(name)) continue;
    const type = messageType(name);
    const value = type.toObject(type.decode(detail.value), { longs: Number, defaults: true, arrays: true });
    if (name === "google.rpc.ErrorInfo") reason = value.reason;
    if (name === "google.rpc.BadRequest") fields = value.fieldViolations.map((each: { field: string }) => each.field);
    if (name === "google.rpc.RetryInfo")
      retryAfterMs = value.retryDelay.seconds * 1000 + Math.round(value.retryDelay.nanos / 1e6);
  }
  return new TokenwireError(status[code] ?? String(code), message, reason, fields, retryAfterMs);
}
