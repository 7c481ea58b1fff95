/** Lists that come in pages: the next one is asked for when it is needed. */
import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";
import type { CallOptions, Calls } from "./calls.js";

export async function* pages<I extends DescMessage, O extends DescMessage>(
  calls: Calls,
  method: DescMethodUnary<I, O>,
  request: MessageShape<I>,
  options: CallOptions,
): AsyncGenerator<MessageShape<O>> {
  const next = { ...request, pageToken: "" };
  do {
    const page = await calls.unary(method, next, options);
    yield page;
    next.pageToken = (page as unknown as { nextPageToken: string }).nextPageToken;
  } while (next.pageToken !== "");
}
