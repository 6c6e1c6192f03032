// Run the checks of one client of JavaScript. The scripts import it.
import { readFileSync } from "node:fs";

export const root = process.env.FINETALE_URL;
export const url = `${root}/v1`;
export const model = "tiny";
export const asked = [{ role: "user", content: "Who stood at the lamp?" }];
export const long = 3000; // tokens of a text that a client leaves
export const schema = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] }, days: { type: "integer", minimum: 1 } },
  required: ["city", "days"],
  additionalProperties: false,
};
export const weather = {
  type: "function",
  function: { name: "weather", description: "The weather of a city.", parameters: schema },
};

export async function run(name, checks) {
  const version = JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version;
  const found = {};
  for (const check of checks) {
    try {
      await check();
      found[check.name] = "ok";
    } catch (error) {
      found[check.name] = String(error).slice(0, 600);
    }
  }
  console.log(JSON.stringify({ version, checks: found }));
  process.exit(0);
}

export function expect(condition, shown) {
  if (!condition) throw new Error(`unexpected: ${JSON.stringify(shown)}`);
}

export function expectArguments(given) {
  const found = typeof given === "string" ? JSON.parse(given) : given;
  expect(["Paris", "Rome"].includes(found.city) && found.days >= 1, found);
}

export async function expectIdle(seconds = 1) {
  const ends = Date.now() + seconds * 1000;
  for (;;) {
    const text = await (await fetch(`${root}/metrics`)).text();
    if (Number(/^finetale_busy_slots\{model="tiny"\} (\S+)/m.exec(text)?.[1]) === 0) return;
    expect(Date.now() < ends, "the text is still being generated");
    await new Promise((done) => setTimeout(done, 20));
  }
}
