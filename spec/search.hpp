// The search: breadth first over every interleaving, exact states (no hash compaction), shortest
// counterexample first; or random walks. It knows successors() and normalize() of the model alone.
#pragma once
#include "state.hpp"

static void successors(const State &s, const Emit &emit);
static void normalize(State &s);

static std::vector<State *> blocks;
static std::vector<uint32_t> parent, table_;
static size_t count_ = 0, mask_ = 0;
enum { BLOCK = 1 << 14 };
static State &at(size_t i) { return blocks[i / BLOCK][i % BLOCK]; }
static uint64_t hash_of(const State &s) {
  const u8 *b = (const u8 *)&s; uint64_t h = 0x9E3779B97F4A7C15ull; size_t i = 0, n = sizeof s;
  for (; i + 8 <= n; i += 8) { uint64_t w; memcpy(&w, b + i, 8); h = (h ^ w) * 0xff51afd7ed558ccdull; h ^= h >> 32; }
  for (; i < n; i++) h = (h ^ b[i]) * 0x100000001b3ull;
  h ^= h >> 29; h *= 0xc4ceb9fe1a85ec53ull; h ^= h >> 32;
  return h;
}
static void grow() {
  std::vector<uint32_t> old; old.swap(table_);
  table_.assign(old.empty() ? 1 << 20 : old.size() * 2, 0); mask_ = table_.size() - 1;
  for (uint32_t v : old) if (v) { size_t h = hash_of(at(v - 1)) & mask_; while (table_[h]) h = (h + 1) & mask_; table_[h] = v; }
}
static bool insert(const State &s, uint32_t from) {
  if (count_ * 3 >= table_.size() * 2) grow();
  size_t h = hash_of(s) & mask_;
  for (; table_[h]; h = (h + 1) & mask_) if (!memcmp(&at(table_[h] - 1), &s, sizeof s)) return false;
  if (count_ % BLOCK == 0) blocks.push_back((State *)calloc(BLOCK, sizeof(State)));
  memcpy(&at(count_), &s, sizeof s);
  parent.push_back(from);
  table_[h] = ++count_;
  return true;
}
static size_t index_of(const State &s) {                    // of a state that was inserted
  size_t h = hash_of(s) & mask_;
  while (memcmp(&at(table_[h] - 1), &s, sizeof s)) h = (h + 1) & mask_;
  return table_[h] - 1;
}
static void trace(uint32_t i, const char *last) {
  std::vector<uint32_t> path;
  for (uint32_t j = i; ; j = parent[j]) { path.push_back(j); if (!j) break; }
  std::reverse(path.begin(), path.end());
  for (size_t k = 1; k < path.size(); k++) {
    std::string found; const State &want = at(path[k]);
    violation.clear();
    successors(at(path[k - 1]), [&](const State &u, const char *l) { State t = u; normalize(t); if (found.empty() && !memcmp(&t, &want, sizeof t)) found = l; });
    printf("  %2zu %s\n", k, found.c_str());
  }
  printf("  %2zu %s\n", path.size(), last);
}

// Random walks from the initial state: no proof, but bounds that the full search cannot reach.
// Each walk draws its own liking for each kind of step (peer and verb), so that some walks starve a peer.
static int walk(const State &first, double seconds, uint64_t seed, int steps, bool show) {
  uint64_t x = seed * 0x9E3779B97F4A7C15ull + 1, taken = 0, walks = 0;
  auto rnd = [&](uint32_t n) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; return uint32_t((x >> 33) % n); };
  clock_t begin = clock();
  std::vector<State> path; std::vector<std::string> said;
  while (double(clock() - begin) / CLOCKS_PER_SEC < seconds) {
    walks++; State s = first; path.clear(); said.clear();
    for (int k = 0; k < steps; k++) {
      State pick = s; uint32_t n = 0; double total = 0; std::string what; bool bad = false;
      violation.clear();
      successors(s, [&](const State &t, const char *l) {
        if (bad) return;
        if (!violation.empty()) { bad = true; what = l; return; }
        uint64_t h = walks * 0x9E3779B97F4A7C15ull + seed;
        for (int i = 0, words = 0; l[i] && words < 2; i++) { h = (h ^ l[i]) * 0x100000001b3ull; words += l[i] == ' '; }
        static const double liking[] = {0.01, 0.1, 0.5, 1, 1, 4, 10, 30};
        double w = liking[(h >> 40) & 7];
        n++; total += w;
        if (rnd(1 << 24) * total < w * (1 << 24)) { pick = t; what = l; }
      });
      taken++;
      if (bad || n) said.push_back(what);
      if (bad) {
        printf("VIOLATED %s | steps %d | walks %llu | seed %llu | %.1f s\n", violation.c_str(), k + 1, (unsigned long long)walks, (unsigned long long)seed, double(clock() - begin) / CLOCKS_PER_SEC);
        if (show) for (size_t i = 0; i < said.size(); i++) printf("  %2zu %s\n", i + 1, said[i].c_str());
        return 1;
      }
      if (!n) break;
      s = pick;
    }
  }
  printf("NO VIOLATION FOUND in %llu walks, %llu steps, seed %llu | %.1f s\n", (unsigned long long)walks, (unsigned long long)taken, (unsigned long long)seed, seconds);
  return 0;
}

