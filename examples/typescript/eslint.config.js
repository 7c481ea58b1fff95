// The rules of the client hold here too.
export { default } from "../../clients/typescript/eslint.config.js";
