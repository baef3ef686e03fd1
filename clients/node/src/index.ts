export { Client, type ClientOptions } from "./client.js";
export { errorOf, errorOfFinish, TokenwireError } from "./errors.js";
export { Output, type Delta } from "./output.js";
export { Session } from "./session.js";
