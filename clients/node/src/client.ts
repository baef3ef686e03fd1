// A connection to a gateway: the generated stub, TLS and an API key, and sessions.

import { credentials, Metadata, type ChannelCredentials } from "@grpc/grpc-js";
import { readFileSync } from "node:fs";
import { services } from "./contract.js";
import type { GenerationServiceClient } from "./generated/tokenwire/v1/GenerationService.js";
import { Session } from "./session.js";

export interface ClientOptions {
  /** An API key or a JWT, sent with every call; over TLS only. */
  apiKey?: string;
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
    if (options.apiKey && !options.tls) throw new Error("an API key is sent over TLS only: set tls");
    this.stub = new services.tokenwire.v1.GenerationService(target, channelCredentials(options), {
      "grpc.max_receive_message_length": 16 * 2 ** 20,
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

function channelCredentials({ apiKey, tls, caFile }: ClientOptions): ChannelCredentials {
  if (!tls) return credentials.createInsecure();
  const channel = credentials.createSsl(caFile ? readFileSync(caFile) : null);
  if (!apiKey) return channel;
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${apiKey}`);
  return credentials.combineChannelCredentials(
    channel,
    credentials.createFromMetadataGenerator((_, done) => done(null, metadata)),
  );
}
