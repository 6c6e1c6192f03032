import OpenAI from "openai";
import { asked, expect, expectArguments, expectIdle, long, model, run, schema, url, weather } from "./checks.mjs";

const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });

async function plain() {
  const found = await client.chat.completions.create({ model, messages: asked, max_tokens: 20 });
  expect(found.choices[0].message.content, found);
  const response = await client.responses.create({ model, input: "Who?", max_output_tokens: 20 });
  expect(response.output_text, response);
}

async function stream() {
  let chunks = 0;
  for await (const _ of await client.chat.completions.create({ model, messages: asked, max_tokens: 20, temperature: 0, stream: true })) chunks++;
  expect(chunks > 4, chunks);
  const kinds = [];
  for await (const event of client.responses.stream({ model, input: "Who?", max_output_tokens: 20 })) kinds.push(event.type);
  expect(kinds.at(-1).match(/completed|incomplete/), kinds);
}

async function tools() {
  const values = { model, messages: asked, tools: [weather], tool_choice: "required", parallel_tool_calls: false, seed: 1, max_tokens: 200 };
  const whole = (await client.chat.completions.create(values)).choices[0].message.tool_calls[0].function;
  expectArguments(whole.arguments);
  const streamed = await client.chat.completions.stream(values).finalChatCompletion();
  expect(streamed.choices[0].message.tool_calls[0].function.arguments === whole.arguments, streamed);
}

async function structured() {
  const response_format = { type: "json_schema", json_schema: { name: "trip", schema, strict: true } };
  const found = await client.chat.completions.parse({ model, messages: asked, response_format, max_tokens: 200 });
  expectArguments(found.choices[0].message.content);
}

async function embeddings() {
  const found = await client.embeddings.create({ model, input: ["The lamp", "A heron"] });
  expect(found.data.every((item) => item.embedding.length === 32), found);
}

async function cancel() {
  const events = await client.chat.completions.create({ model, messages: asked, max_tokens: long, temperature: 0, stream: true });
  let count = 0;
  for await (const _ of events) if (++count === 5) break;
  await expectIdle();
}

await run("openai", [plain, stream, tools, structured, embeddings, cancel]);
