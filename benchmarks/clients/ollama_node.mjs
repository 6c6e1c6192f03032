import { Ollama } from "ollama";
import { asked, expect, expectArguments, expectIdle, long, model, root, run, schema, weather } from "./checks.mjs";

const client = new Ollama({ host: root });
const options = { num_predict: 20 };

async function plain() {
  expect((await client.chat({ model, messages: asked, options })).message.content);
  expect((await client.generate({ model, prompt: "The lamp", options })).response);
}

async function stream() {
  let chunks = 0;
  for await (const _ of await client.chat({ model, messages: asked, options, stream: true })) chunks++;
  expect(chunks > 4, chunks);
}

async function tools() {
  expect((await client.chat({ model, messages: asked, tools: [weather], options })).message);
}

async function structured() {
  const found = await client.chat({ model, messages: asked, format: schema, options: { num_predict: 200 } });
  expectArguments(found.message.content);
}

async function embeddings() {
  const found = await client.embed({ model, input: ["The lamp", "A heron"] });
  expect(found.embeddings.every((row) => row.length === 32), found);
}

async function cancel() {
  let count = 0;
  try {
    const events = await client.chat({ model, messages: asked, options: { num_predict: long, temperature: 0 }, stream: true });
    for await (const _ of events) if (++count === 5) events.abort();
  } catch (error) {
    expect(error.name === "AbortError", String(error));
  }
  await expectIdle();
}

await run("ollama", [plain, stream, tools, structured, embeddings, cancel]);
