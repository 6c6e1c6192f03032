import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { expect, expectArguments, expectIdle, long, model, run, schema, url, weather } from "./checks.mjs";

const options = { model, apiKey: "none", maxRetries: 0, configuration: { baseURL: url } };
const chat = new ChatOpenAI({ ...options, maxTokens: 200 });

async function plain() {
  expect((await chat.invoke("Who?")).content);
}

async function stream() {
  let chunks = 0;
  for await (const _ of await chat.stream("Who?")) chunks++;
  expect(chunks > 4, chunks);
}

async function tools() {
  const calling = chat.bindTools([weather], { tool_choice: "required", parallel_tool_calls: false });
  expectArguments((await calling.invoke("Who?")).tool_calls[0].args);
  let whole;
  for await (const chunk of await calling.stream("Who?")) whole = whole ? whole.concat(chunk) : chunk;
  expectArguments(whole.tool_calls[0].args);
}

async function structured() {
  expectArguments(await chat.withStructuredOutput(schema, { name: "trip", method: "jsonSchema" }).invoke("Who?"));
  expectArguments(await chat.withStructuredOutput(schema, { name: "trip", method: "functionCalling" }).invoke("Who?"));
}

async function embeddings() {
  const found = await new OpenAIEmbeddings(options).embedDocuments(["The lamp", "A heron"]);
  expect(found.every((row) => row.length === 32), found);
}

async function cancel() {
  let count = 0;
  const slow = new ChatOpenAI({ ...options, maxTokens: long, temperature: 0 });
  const leaving = new AbortController();
  try {
    for await (const _ of await slow.stream("Who?", { signal: leaving.signal })) if (++count === 5) leaving.abort();
  } catch (error) {
    expect(/abort/i.test(String(error)), String(error));
  }
  expect(count === 5, count);
  await expectIdle();
}

await run("@langchain/openai", [plain, stream, tools, structured, embeddings, cancel]);
