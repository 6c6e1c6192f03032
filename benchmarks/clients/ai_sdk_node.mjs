import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import { expect, expectArguments, expectIdle, long, model as name, run, schema, url } from "./checks.mjs";

const provider = createOpenAICompatible({ name: "finetale", baseURL: url, apiKey: "none", supportsStructuredOutputs: true, includeUsage: true });
const model = provider(name);
const common = { model, prompt: "Who?", maxRetries: 0, maxOutputTokens: 200 };
const given = { tools: { weather: tool({ description: "The weather.", inputSchema: jsonSchema(schema) }) }, toolChoice: "required" };

async function plain() {
  expect((await generateText({ ...common, maxOutputTokens: 20 })).text);
}

async function stream() {
  let pieces = 0;
  for await (const _ of streamText({ ...common, maxOutputTokens: 20, temperature: 0 }).textStream) pieces++;
  expect(pieces > 3, pieces);
}

async function tools() {
  expectArguments((await generateText({ ...common, ...given })).toolCalls[0].input);
  const streamed = streamText({ ...common, ...given });
  let deltas = 0;
  for await (const part of streamed.fullStream) if (part.type === "tool-input-delta") deltas++;
  expectArguments((await streamed.toolCalls)[0].input);
  expect(deltas > 3, deltas);
}

async function structured() {
  expectArguments((await generateObject({ ...common, schema: jsonSchema(schema) })).object);
}

async function embeddings() {
  const embedding = provider.embeddingModel?.(name) ?? provider.textEmbeddingModel(name);
  const found = await embedMany({ model: embedding, values: ["The lamp", "A heron"] });
  expect(found.embeddings.every((row) => row.length === 32), found);
}

async function cancel() {
  const leaving = new AbortController();
  let count = 0;
  const streamed = streamText({ ...common, maxOutputTokens: long, temperature: 0, abortSignal: leaving.signal });
  for await (const part of streamed.fullStream) if (part.type === "text-delta" && ++count === 5) leaving.abort();
  expect(count >= 5, count);
  await expectIdle();
}

await run("ai", [plain, stream, tools, structured, embeddings, cancel]);
