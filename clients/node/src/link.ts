// One stream of a session: its handles, who reads them, and what waits to go up.

import type { ClientDuplexStream } from "@grpc/grpc-js";
import { errorOf, TokenwireError } from "./errors.js";
import type { Hello__Output } from "./generated/tokenwire/v1/Hello.js";
import type { SessionRequest } from "./generated/tokenwire/v1/SessionRequest.js";
import type { SessionResponse__Output } from "./generated/tokenwire/v1/SessionResponse.js";
import type { TextRequest } from "./generated/tokenwire/v1/TextRequest.js";
import { Output, type Up } from "./output.js";
import type { TimeLimit } from "./timelimit.js";

const PROTOCOL_VERSION = 1;
const LAST_FIRST_HANDLE = 2 ** 32 - 1 - 1024; // past it a new stream takes over
const MAX_FRAME_BYTES = 512 * 1024; // a frame takes nothing more past it; a larger Submit goes alone
const SMALL_BYTES = 16; // of a Cancel or a Credit, at most

type Frame = Required<Pick<SessionRequest, "submits" | "cancels" | "credits">>;

const emptyFrame = (): Frame => ({ submits: [], cancels: [], credits: [] });

export class Link implements Up {
  readonly outputs = new Map<number, Output>();
  readonly hello: Promise<Hello__Output>;
  next = 1;
  left = false;
  #pending: Frame[] = []; // the last is being filled
  #filled = 0; // bytes of it, about
  #scheduled = false;
  #greeted!: (hello: Hello__Output) => void;
  #refused!: (error: TokenwireError) => void;

  constructor(
    private readonly call: ClientDuplexStream<SessionRequest, SessionResponse__Output>,
    private readonly changed: (link: Link, ended: number) => void,
  ) {
    this.hello = new Promise((resolve, reject) => {
      this.#greeted = resolve;
      this.#refused = reject;
    });
    this.hello.catch(() => {}); // whoever submits hears of it
    call.on("data", (frame: SessionResponse__Output) => {
      try {
        this.#take(frame);
      } catch (error) {
        this.#lose(errorOf(error));
        this.close();
      }
    });
    call.on("error", (error) => this.#lose(errorOf(error)));
    call.on("end", () => this.#lose(new TokenwireError("UNAVAILABLE", "the server ended the session", "SESSION_ENDED")));
    call.write({ hello: { protocolVersion: PROTOCOL_VERSION, peer: "tokenwire-node" } });
  }

  submit(asked: TextRequest, number: number, credit: number | undefined, limit: TimeLimit): Output[] {
    const timeoutMs = limit.leftMs();
    const request = timeoutMs === undefined ? asked : { ...asked, context: { ...asked.context, timeoutMs } };
    const bytes = Buffer.byteLength(JSON.stringify(request));
    const handle = this.next;
    this.next += number;
    const outputs = Array.from({ length: number }, (_, choice) => new Output(this, handle + choice, credit, limit));
    outputs.forEach((output, choice) => this.outputs.set(handle + choice, output));
    const submit = { handle, request, ...(credit === undefined ? {} : { initialCredit: credit }) };
    this.#frame(bytes).submits.push(submit);
    if (this.next > LAST_FIRST_HANDLE) this.leave();
    return outputs;
  }

  cancel(handle: number): void {
    this.#frame(SMALL_BYTES).cancels.push({ handle, reason: "CANCEL_REASON_CLIENT" });
  }

  grant(handle: number, tokens: number): void {
    this.#frame(SMALL_BYTES).credits.push({ handle, tokens });
  }

  /** New requests go elsewhere; this stream runs out. */
  leave(): void {
    this.left = true;
    this.changed(this, 0);
    this.#schedule();
  }

  close(): void {
    this.call.cancel();
  }

  /** The frame that has room for so much more, and is sent soon. */
  #frame(bytes: number): Frame {
    let frame = this.#pending.at(-1);
    if (frame === undefined || this.#filled + bytes > MAX_FRAME_BYTES) {
      frame = emptyFrame();
      this.#pending.push(frame);
      this.#filled = 0;
    }
    this.#filled += bytes;
    this.#schedule();
    return frame;
  }

  /** What is asked for in one turn of the event loop goes up together. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      const frames = this.#pending;
      this.#pending = [];
      frames.forEach((frame) => this.call.write(frame));
      if (this.left && this.outputs.size === 0) this.call.end();
    });
  }

  /** Throws a TokenwireError for what the protocol forbids. */
  #take(frame: SessionResponse__Output): void {
    if (frame.texts.length !== frame.handles.length || frame.numTokens.length !== frame.handles.length)
      throw new TokenwireError("INTERNAL", "a frame came whose columns differ in length", "BAD_FRAME");
    if (frame.hello) {
      if (frame.hello.protocolVersion === PROTOCOL_VERSION) this.#greeted(frame.hello);
      else {
        const message = `the server speaks session protocol ${frame.hello.protocolVersion}`;
        this.#refused(new TokenwireError("FAILED_PRECONDITION", message, "PROTOCOL_VERSION"));
        this.close();
      }
    }
    frame.handles.forEach((handle, row) =>
      this.outputs.get(handle)?.add({ text: frame.texts[row]!, numTokens: frame.numTokens[row]! }),
    );
    let ended = 0;
    for (const finish of frame.finishes) {
      const output = this.outputs.get(finish.handle);
      if (output === undefined) continue;
      this.outputs.delete(finish.handle);
      output.end(finish);
      ended += 1;
    }
    if (frame.drain) this.left = true;
    if (ended > 0 || frame.drain) {
      this.changed(this, ended);
      if (this.left) this.#schedule();
    }
  }

  #lose(error: TokenwireError): void {
    this.left = true;
    this.#refused(error);
    const lost = [...this.outputs.values()];
    this.outputs.clear();
    lost.forEach((output) => output.lose(error));
    this.changed(this, lost.length);
  }
}
