// hotset's public C++ interface: load a model, make an engine, generate text.
//
//   auto model = hotset::Model::load("model.gguf");
//   auto engine = hotset::Engine::create(model, {});
//   hotset::Generation generation(engine, {model->tokenizer().encode("Once upon a time")}, {});
//   while (generation.next()) for (const auto& token : generation.tokens()) std::cout << token.text;
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "core/model.h"
#include "core/quantize_model.h"
#include "core/sampler.h"
#include "core/synth.h"
#include "core/tokenizer.h"
#include "core/unit_counts.h"

namespace hotset {

class EngineImpl;
class Predictor;
class Sidecar;
struct AdaptationOptions;
struct MachineRates;
struct Placement;
struct VirtualDeviceOptions;
class UnitObserver;
class SequenceState;

// Version and build of the library, for `--version`, `doctor` and benchmark rows.
const char* version();
const char* build_commit();

// The processors this process may use and the number of threads that an engine takes by default, with the reason, in
// one line for people.
std::string describe_processors();

class Engine;

struct EngineOptions {
  int32_t n_threads = 0;         // 0 = one per physical core, performance cores only, within the quota of the cgroup
  std::string pin = "auto";      // "on": each thread on its own core, "off", "auto": off the slow cores of a hybrid CPU
  int64_t n_ctx = 0;             // positions a sequence may reach; 0 = what the model was trained for
  int32_t n_batch = 512;         // rows computed at once in prefill
  int32_t n_sequences = 0;       // sequences that may be open at n_ctx each; 0 = no fixed number, memory is the limit
  // Closed sequences that keep their KV blocks for later prompts that begin alike, the longest unused given up first;
  // 0 = none. They never make the KV memory grow beyond that of n_sequences (at least one) full contexts, nor beyond an
  // eighth of the machine's.
  int32_t n_kept_sequences = 16;
  std::string kv_type = "auto";  // "f16", "f32", "auto": f32 for models whose weights are all F32, else f16; or "q8_0":
                                 // half of f16's memory, heads of a multiple of 32 elements
  // "dense" | "exact": skip inactive units, same results (on a standard file, as after `hotset quantize`) | "predict":
  // do not even look at units that a predictor rules out, at a measured loss | "auto": exact where the activation makes
  // zeros
  std::string mode = "auto";
  // With mode "predict": "bit_planes:BITS" or "bit_planes:BITS:Z", see parse_predictor; "" = that of the sidecar.
  std::string predictor{};
  // File with what the offline phase found out; "auto" = the one beside the model where there is one, "none".
  std::string sidecar = "auto";
  // "auto" | "cpu" | "cuda" | "virtual": a pretend card, which computes on a core of the CPU in memory of its own
  std::string device = "auto";
  // The accelerator's memory that may be taken: weights, KV cache and buffers; nothing = what is free, and of a pretend
  // card kVirtualBytes.
  std::optional<uint64_t> vram_budget{};
  uint64_t host_memory = 0;  // bytes that weights, keys and values may take on the host; 0 = what the machine has
  std::string n_gpu_layers = "auto";  // "all" or a number: at least that many last layers wholly on the accelerator
  std::string kv_place = "auto";      // "device" | "host" | "auto": with the layer's attention
  // What placement reckons with; nullptr = rates of a common card and PC.
  std::shared_ptr<const MachineRates> rates{};
  // What lies where; nullptr = as the sidecar says, made to fit, else the best for the budget.
  std::shared_ptr<const Placement> placement{};
  // (n_layer) permutations: the unit of each slot, hottest first; nullptr = as the sidecar says, else as in the file.
  std::shared_ptr<const std::vector<std::vector<int32_t>>> units_by_slot{};
  // With an accelerator: steps of at least so many rows bring the cold units' rows to it, in chunks of stream_bytes, and
  // compute them there; 0 = none, -1 = where that is predicted to be faster. stream_bytes 0 = a size that hides copying.
  int64_t stream_from_rows = -1;
  uint64_t stream_bytes = 0;
  std::shared_ptr<const Sidecar> opened_sidecar{};  // the file that `sidecar` means, where it is open already
  // Whether hot and cold units change places while generating, in mode exact with an accelerator, as text asks for other
  // ones: "on" | "off" | "auto": on, but where a file's units lie hottest first already their rows stay in the mapped
  // file, and "on" copies them. No result changes.
  std::string adapt = "auto";
  std::shared_ptr<const AdaptationOptions> adaptation{};  // for tests; nullptr = swaps as the cost model allows
  std::shared_ptr<const VirtualDeviceOptions> virtual_device{};  // of device "virtual", for tests; nullptr = ordinary
  std::string isa{};             // "" = best here (or HOTSET_ISA), "generic", "avx2", "avx512"; "amx" when named
  // Weights as this engine of the same model laid them out anew at load are used, in dense mode too: dense results on the
  // very weights of an exact engine. nullptr = the file's, laid out anew where the mode needs it.
  std::shared_ptr<const Engine> weights_from{};
  // Sees every unit of every row (core/device.h) and must outlive the engine. All units are computed: mode dense, auto
  // or, to see the margins of a predictor too, predict.
  UnitObserver* observer = nullptr;
  LogSink log{};
};

// What an engine runs on and what it costs. Bytes are exact sums of what was mapped or reserved.
struct EngineInfo {
  std::string device;   // "cpu"
  std::string isa;      // kernels in use
  std::string mode;     // mode in effect
  std::string predictor;  // "bit_planes:2", "low_rank", "mlp"; "" in other modes
  std::string kv_type;  // type in effect
  // Threads asked for; no more than there are processors compute.
  int32_t n_threads = 0;
  int64_t n_ctx = 0;
  uint64_t weight_bytes = 0;            // mapped from the file, not copied
  uint64_t relayout_bytes = 0;          // made at load for sparse execution, in place of as much of the mapped file
  uint64_t weight_bytes_per_token = 0;  // read by one dense decode token
  uint64_t skippable_bytes_per_token = 0;  // part of it that exact mode reads for active units only
  uint64_t detect_bytes_per_token = 0;     // part of it that predict mode reads for candidates only
  uint64_t predictor_bytes = 0;            // made at load for predict mode
  uint64_t predictor_bytes_per_token = 0;  // what predict mode reads besides
  uint64_t kv_bytes_per_position = 0;
  uint64_t buffer_bytes = 0;  // activations and scratch, of all devices
  uint64_t host_buffer_bytes = 0;  // part of it
  // With an accelerator:
  uint64_t device_bytes = 0;         // taken there: weights, keys and values, buffers; equals what `plan` says
  uint64_t device_weight_bytes = 0;  // part of it
  uint64_t device_kv_bytes = 0;      // part of it: of n_ctx positions for each of n_sequences
  uint64_t arena_bytes = 0;          // host memory with the rows of cold units
  uint64_t shared_bytes = 0;         // host memory through which hand-offs and exchanged units go
  bool adapts = false;               // units change places while generating
  uint64_t n_swaps = 0;              // of a hot and a cold unit, so far
  double gpu_active_share = 0;  // of the active units, as far as frequencies are known, else of all; 0 with a given
                                // placement
  double predicted_tg_ts = 0;   // tokens per second that the placement reckons with; 0 = not known
};

// How many of n_tokens tokens each unit was active for, by layer and unit, whatever slot it was in.
struct ActivityCounts {
  uint64_t n_tokens = 0;
  std::vector<std::vector<uint64_t>> layers;  // (n_layer, n_ff)
};

// Memory of a pretend card for which no budget was given.
constexpr uint64_t kVirtualBytes = uint64_t{8} << 30;

// Whether a device of that name computes beside the CPU.
inline bool is_accelerator(const std::string& device) { return device == "cuda" || device == "virtual"; }

// Asked between operations while computing; true stops the step with CancelledError. May be empty.
using StopCheck = std::function<bool()>;

class Session;

// Owns the device, the plans and the KV blocks. Thread-safe: steps (at most n_batch rows) of concurrent calls take
// turns.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  // Throws std::invalid_argument (options), UnsupportedModelError, OutOfMemoryError, DeviceError.
  static std::shared_ptr<Engine> create(std::shared_ptr<const Model> model, const EngineOptions& options);
  ~Engine();

  const Model& model() const;
  EngineInfo info() const;
  UnitCounts unit_counts() const;  // of exact and predict steps since the engine was made
  Traffic traffic() const;         // with an accelerator
  // What adaptation has counted since the engine was made; no layers where it does not adapt.
  ActivityCounts activity() const;
  const Predictor* predictor() const;  // of mode predict, else nullptr; lives as long as the engine
  Session open_session();
  // A session that goes on where the saved one was. It has no logits until its next advance. Throws Error (cannot be
  // opened), ModelFormatError (damaged, of another model, KV type or way to compute), ContextLengthError,
  // OutOfMemoryError.
  Session load_session(const std::string& path);

  // Tokens to add to one session in a step, and which of their logits are wanted.
  struct Entry {
    Session* session;
    std::span<const int32_t> tokens;
    bool all_logits = false;  // every position instead of the last only
  };

  // Adds tokens to several sessions in one pass (mixed prefill and decode). Either all entries advance or, when this
  // throws, none does. Splits into chunks of n_batch rows. A row's result does not depend on what else is in the batch.
  // Throws ContextLengthError, OutOfMemoryError, CancelledError, std::invalid_argument (token ids, a session twice).
  void advance(std::span<const Entry> entries, const StopCheck& stop = {});

 private:
  friend class Session;
  friend class EngineImpl;
  explicit Engine(std::unique_ptr<EngineImpl> impl);
  std::unique_ptr<EngineImpl> impl_;
};

// One conversation: the tokens so far and their KV cache. Movable. Not thread-safe, but cancel() may be called from
// any thread. Keeps its engine alive.
class Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Adds tokens; afterwards logits() belongs to the last of them.
  void prefill(std::span<const int32_t> tokens, const StopCheck& stop = {});

  // Logits (n_vocab) of the last position of the latest advance; valid until the next one.
  std::span<const float> logits() const;
  // Logits of every position of the latest advance with all_logits: (n_tokens, n_vocab) row by row.
  std::span<const float> all_logits() const;

  const std::shared_ptr<Engine>& engine() const { return engine_; }
  int64_t n_past() const;                      // positions held
  const std::vector<int32_t>& tokens() const;  // the tokens at those positions
  void truncate(int64_t n_positions);          // forgets everything from n_positions on
  void cancel();                               // ends the running advance of this session, or else the next one

  // A new session with the first n positions of this one. Their memory is shared until either writes where it may not:
  // then it copies that one block. Not while this session advances.
  Session fork(int64_t n_positions) const;
  // Takes over the longest beginning of `tokens`, the last one excepted, that the engine keeps, and returns its length.
  // For a session that holds nothing. What follows is, bit for bit, as if the tokens had been computed.
  int64_t reuse(std::span<const int32_t> tokens);
  // Leaves the positions held to reuse() of later sessions; this one goes on. Whole blocks only: it copies nothing.
  void keep() const;
  // As keep() for everything held; this session then holds nothing.
  void retire();
  // Writes the tokens and their keys and values; logits are not saved. Throws Error.
  void save(const std::string& path) const;

 private:
  friend class Engine;
  Session(std::shared_ptr<Engine> engine, std::unique_ptr<SequenceState> state);
  std::shared_ptr<Engine> engine_;
  std::unique_ptr<SequenceState> state_;
};

enum class FinishReason { kNone, kStop, kLength, kCancelled };
const char* finish_reason_name(FinishReason reason);  // "", "stop", "length", "cancelled"

struct GenerateOptions {
  int64_t max_tokens = 256;       // -1 = until an end token
  SamplerOptions sampler;         // sequence i of a batch uses seed + i
  std::vector<std::string> stop;  // generation ends before the first of these texts
  bool ignore_eos = false;
  bool context_shift = false;  // at the end of the context keep the first token and the later half, and go on
  bool special = false;        // show control tokens in the text
  bool reuse = true;  // compute common beginnings once: of the prompts, and of those with what the engine keeps
  // Called with (sequence, its logits) before sampling; may change them. Empty = none.
  std::function<void(size_t, std::span<float>)> logits_processor;
};

// One generated token of one sequence. `text` may be "" (inside a character or a possible stop text) and may carry the
// bytes of earlier tokens that were held back.
struct GeneratedToken {
  size_t sequence = 0;
  int64_t index = 0;  // 0 for the first generated token
  int32_t id = -1;    // -1: no new token, only the rest of the text with the finish reason
  float logprob = 0;
  std::string text;
  FinishReason finish = FinishReason::kNone;
};

struct GenerateStats {
  int64_t n_prompt = 0;         // prompt tokens, all sequences
  int64_t n_prompt_reused = 0;  // those of them that were not computed anew
  int64_t n_generated = 0;      // tokens sampled, all sequences
  double prompt_ms = 0;         // time in prefill
  double generate_ms = 0;       // time in decode steps and sampling after the first token
  double first_token_ms = 0;    // from the first next() to the first token
};

// Generates from one or several prompts in one pass, a token per sequence and call. Used by one thread at a time;
// cancel() may come from any thread.
class Generation {
 public:
  // Throws std::invalid_argument for empty prompts or bad options, ContextLengthError when a prompt does not fit.
  Generation(std::shared_ptr<Engine> engine, std::vector<std::vector<int32_t>> prompts, const GenerateOptions& options);
  // Goes on with a session: `prompt` follows what it holds, and both must fit the context. Takes it unless this throws.
  Generation(Session&& session, std::vector<int32_t> prompt, const GenerateOptions& options);
  // Retires the sessions, with `reuse`.
  ~Generation();

  // Computes the next token of every unfinished sequence; false when all are finished. tokens() then holds the new
  // ones. A sequence that meets the end of the context without context_shift stops there; when all others are finished
  // ContextLengthError is thrown, and what was generated has been delivered. After another error it cannot go on.
  bool next(const StopCheck& stop = {});

  const std::vector<GeneratedToken>& tokens() const;
  const GenerateStats& stats() const;

  // Ends all sequences with FinishReason::kCancelled within a token, during prefill too.
  void cancel();

  // Ends the generation and gives the session of its first sequence back; `pending` are tokens that it does not hold
  // yet: the one sampled last or, before anything was computed, the prompt.
  struct Rest {
    Session session;
    std::vector<int32_t> pending;
  };
  Rest take_session();

 private:
  struct Sequence;
  struct State;
  std::unique_ptr<State> state_;
};

// Mean negative log likelihood per token as llama-perplexity computes it.
struct PerplexityResult {
  double nll_mean = 0;
  double nll_error = 0;  // standard error of the mean
  int64_t n_scored = 0;
  double ppl() const;
  double ppl_error() const;
};

// Cuts `tokens` into chunks of n_ctx, replaces each chunk's first token by BOS where the vocabulary adds one, and
// scores the second half of each chunk. `progress(chunks done, chunks, so far)` may be empty. Throws
// std::invalid_argument when there are fewer than 2 * n_ctx tokens.
PerplexityResult perplexity(Engine& engine, std::span<const int32_t> tokens, int64_t n_ctx,
                            const std::function<void(int64_t, int64_t, const PerplexityResult&)>& progress,
                            const StopCheck& stop = {});

// Natural log of softmax(logits)[id], computed in double.
double log_softmax_at(std::span<const float> logits, int32_t id);

// Sum over tokens of p * log(p / q), p = softmax(base), q = softmax(other), in nats and double; exactly 0 when the
// logits are equal bit for bit. Throws std::invalid_argument for rows of different length, Error for NaN.
double kl_divergence(std::span<const float> base, std::span<const float> other);

// How far an engine's predictions are from those of `base`, the same weights computed in another way.
struct KldResult {
  double mean_kld = 0;
  double kld_error = 0;  // standard error of the mean
  double kld_p999 = 0;   // 99.9 % of the positions lie below; set when all chunks are done, as kld_max
  double kld_max = 0;
  double same_top = 0;  // share of positions at which both put the same token first
  PerplexityResult base, other;
  int64_t n_scored = 0;
};

// Feeds the same chunks, as perplexity cuts them, to both engines, which may be one. Throws what perplexity throws,
// std::invalid_argument also for engines of different Models, and Error for logits that are NaN.
KldResult kl_divergence(Engine& base, Engine& other, std::span<const int32_t> tokens, int64_t n_ctx,
                        const std::function<void(int64_t, int64_t, const KldResult&)>& progress,
                        const StopCheck& stop = {});

}  // namespace hotset
