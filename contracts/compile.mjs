// Compiles the registry with solc from npm, and writes (or, with --check, compares) what polcommit packages.
//
//   node contracts/compile.mjs           writes polcommit/ledger/artifacts/PolRegistry{,.input}.json
//   node contracts/compile.mjs --check   exit status 1 and one line if they are not what the sources give
//
// The deployed code carries no metadata (bytecodeHash none, appendCBOR false) and no immutables, so its hash is a
// constant: readers pin it in their policy and compare it with EXTCODEHASH.
import { readFileSync, writeFileSync, mkdirSync, existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "..", "polcommit", "ledger", "artifacts");
const contract = "PolRegistry";
const sources = ["src/IPolRegistry.sol", "src/PolRegistry.sol"];

function fail(line) {
  process.stderr.write(`compile-contracts: ${line}\n`);
  process.exit(1);
}

function load(name) {
  try {
    return require(name);
  } catch {
    return fail(`the npm package '${name}' is not installed; run scripts/node-setup`);
  }
}

function standardInput() {
  return {
    language: "Solidity",
    sources: Object.fromEntries(sources.map((name) => [name, { content: readFileSync(join(here, name), "utf8") }])),
    settings: {
      optimizer: { enabled: true, runs: 1000000 },
      evmVersion: "cancun",
      metadata: { bytecodeHash: "none", appendCBOR: false },
      outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
    },
  };
}

function compile(input) {
  const solc = load("solc");
  const { keccak256 } = load("js-sha3");
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  // Warnings count: there is no reason to ship a contract that has one.
  if (output.errors?.length) fail(output.errors.map((error) => error.formattedMessage).join("\n"));
  const { abi, evm } = output.contracts[`src/${contract}.sol`][contract];
  return {
    abi,
    bytecode: `0x${evm.bytecode.object}`,
    deployedBytecode: `0x${evm.deployedBytecode.object}`,
    codeHash: `0x${keccak256(Buffer.from(evm.deployedBytecode.object, "hex"))}`,
    compiler: solc.version(),
  };
}

const input = standardInput();
const files = {
  [`${contract}.json`]: compile(input),
  [`${contract}.input.json`]: input,
};
const check = process.argv.includes("--check");
for (const [name, value] of Object.entries(files)) {
  const path = join(target, name);
  const text = `${JSON.stringify(value, null, 2)}\n`;
  if (!check) {
    mkdirSync(target, { recursive: true });
    writeFileSync(path, text);
  } else if (!existsSync(path) || readFileSync(path, "utf8") !== text) {
    fail(`${name} is not what contracts/src compiles to; run 'node contracts/compile.mjs' and commit the result`);
  }
}
process.stdout.write(`${contract} ${files[`${contract}.json`].codeHash} ${check ? "is up to date" : "written"}\n`);
