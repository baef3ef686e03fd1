// A connection to a gateway: the generated stub, TLS and an API key, and sessions.

import { credentials, InterceptingCall, type Interceptor } from "@grpc/grpc-js";
import { readFileSync } from "node:fs";
import { isIPv4 } from "node:net";
import { refused } from "./checked.js";
import { services } from "./contract.js";
import { TokenwireError } from "./errors.js";
import type { GenerationServiceClient } from "./generated/tokenwire/v1/GenerationService.js";
import { Session } from "./session.js";

/** After so long without a sign the server is asked for one, and given up so long after that. */
const KEEPALIVE_MS = 20_000;
const KEEPALIVE_TIMEOUT_MS = 10_000;

export interface ClientOptions {
  /** An API key or a JWT, sent with every call: over TLS, or to this machine itself. */
  apiKey?: string;
  /** Let the key go to other machines without TLS, where something else encrypts the way. */
  plaintextKey?: boolean;
  /** Use TLS. */
  tls?: boolean;
  /** A file of the certificates to trust; otherwise those that Node trusts. */
  caFile?: string;
}

export class Client {
  /** Every call of the contract, typed. */
  readonly stub: GenerationServiceClient;

  /** Makes a client for host:port; it connects with the first call. */
  constructor(target: string, options: ClientOptions = {}) {
    const { apiKey, plaintextKey, tls, caFile } = options;
    if (apiKey && !tls && !plaintextKey && !staysHere(target)) {
      const message = `the key would go to ${target} unencrypted: set tls, or plaintextKey where the way is encrypted`;
      throw new TokenwireError("FAILED_PRECONDITION", message, "KEY_IN_PLAINTEXT");
    }
    if (apiKey && !/^[!-~]+$/.test(apiKey)) throw refused("api_key", "only visible ASCII characters are allowed, and no white space");
    const channel = tls ? credentials.createSsl(caFile ? readFileSync(caFile) : null) : credentials.createInsecure();
    this.stub = new services.tokenwire.v1.GenerationService(target, channel, {
      interceptors: apiKey ? [bearer(apiKey)] : [],
      "grpc.max_receive_message_length": 16 * 2 ** 20,
      "grpc.keepalive_time_ms": KEEPALIVE_MS,
      "grpc.keepalive_timeout_ms": KEEPALIVE_TIMEOUT_MS,
      "grpc.keepalive_permit_without_calls": 1,
      // A client of its own connection, so that several clients reach several gateway processes.
      "grpc.use_local_subchannel_pool": 1,
    });
  }

  /** Many requests on one stream, at most `maxOpen` outputs of them open at once. */
  session(maxOpen = 1024): Session {
    return new Session(this.stub, maxOpen);
  }

  close(): void {
    this.stub.close();
  }
}

const bearer =
  (apiKey: string): Interceptor =>
  (options, nextCall) =>
    new InterceptingCall(nextCall(options), {
      start(metadata, listener, next) {
        metadata.set("authorization", `Bearer ${apiKey}`);
        next(metadata, listener);
      },
    });

/** Whether all addresses of gRPC's target are this machine's, as it is written: names are not looked up. */
function staysHere(target: string): boolean {
  if (/^unix(-abstract)?:/.test(target)) return true;
  const addresses = target.replace(/^(dns:\/\/\/|dns:|ipv4:|ipv6:)/, "").split(",");
  const hosts = addresses.map((address) => address.slice(0, Math.max(0, address.lastIndexOf(":"))).replace(/^\[|\]$/g, ""));
  return hosts.every((host) => host === "localhost" || host === "::1" || (isIPv4(host) && host.startsWith("127.")));
}
