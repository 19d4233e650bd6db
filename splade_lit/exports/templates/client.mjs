// Sparse vectors of this model with onnxruntime-node and tokenizers alone.
//
// const client = await Client.open();
// await client.encodeDocument(["The capital of France."]); // [{ dims, weights }], dims ascending
// client.terms((await client.encodeQuery(["capital of france"]))[0]); // { token: weight }

import { readFileSync } from "node:fs";
import { join } from "node:path";
import ort from "onnxruntime-node";
import { Tokenizer } from "tokenizers";

export class Client {
  static async open(folder = import.meta.dirname) {
    const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
    const [settings, idf] = [read("bundle.json"), read("idf.json")];
    const [queries, documents] = [1, 2].map(() => Tokenizer.fromFile(join(folder, "tokenizer.json")));
    documents.setTruncation(settings.max_document_tokens, { direction: settings.truncation });
    documents.setPadding({ padId: settings.padding_id });
    const session = await ort.InferenceSession.create(join(folder, settings.model));
    const weights = new Float32Array(settings.vocab_size);
    for (const [token, weight] of Object.entries(idf)) weights[queries.tokenToId(token)] = weight;
    const features = new Map(Object.entries(settings.features));
    return Object.assign(new Client(), { settings, queries, documents, session, weights, features });
  }

  // Vectors of queries: their distinct tokens are looked up, without a neural network.
  async encodeQuery(texts) {
    const { prompts, truncation, max_query_tokens: most, max_query_active_dims: cap } = this.settings;
    const encoded = await this.queries.encodeBatch(texts.map((text) => prompts.query + text), { addSpecialTokens: false });
    const range = truncation === "right" ? [0, most] : [-most];
    const rows = encoded.map((one) => [...new Set(one.getIds().slice(...range))].sort((a, b) => a - b));
    return rows.map((dims) => kept(dims, this.weights, cap));
  }

  // Vectors of documents; those of like length share a batch, for which memory holds all logits.
  async encodeDocument(texts, batchSize = 4) {
    const { prompts, vocab_size: size, ...limits } = this.settings;
    const order = [...texts.keys()].sort((a, b) => texts[a].length - texts[b].length);
    const vectors = [];
    while (order.length) {
      const rows = order.splice(0, batchSize);
      const encoded = await this.documents.encodeBatch(rows.map((row) => prompts.document + texts[row]));
      const ids = encoded.map((one) => (one.getLength() ? one.getIds() : [this.settings.padding_id])); // one at least
      const mask = encoded.map((one) => (one.getLength() ? one.getAttentionMask() : [0]));
      const tensor = (values) => new ort.Tensor("int64", BigInt64Array.from(values.flat(), BigInt), [rows.length, values[0].length]);
      const { data } = (await this.session.run({ input_ids: tensor(ids), attention_mask: tensor(mask) })).embeddings;
      rows.forEach((row, n) => {
        const weights = data.subarray(n * size, (n + 1) * size);
        const { max_document_active_dims: cap, min_document_weight: least, min_document_weight_share: share } = limits;
        vectors[row] = kept([...weights.keys()], weights, cap, least, share);
      });
    }
    return vectors;
  }

  // Token to weight, as engines take them: positive, under names that none refuses.
  terms({ dims, weights }) {
    const order = [...dims.keys()].filter((n) => weights[n] > 0).sort((a, b) => weights[b] - weights[a]);
    return Object.fromEntries(order.map((n) => [this.#name(dims[n]), weights[n]]));
  }

  #name(dim) {
    const token = this.queries.idToToken(dim);
    return this.features.get(token) ?? token ?? `%d${dim}`;
  }
}

function kept(dims, weights, cap, least = 0, share = 0) {
  const size = (dim) => Math.abs(weights[dim]);
  const largest = dims.filter((dim) => weights[dim] !== 0).sort((a, b) => size(b) - size(a)).slice(0, cap ?? undefined);
  const floor = Math.max(Math.fround(least), Math.fround(Math.fround(share) * (largest.length ? size(largest[0]) : 0)));
  const left = largest.filter((dim) => size(dim) >= floor).sort((a, b) => a - b);
  return { dims: left, weights: left.map((dim) => weights[dim]) };
}
