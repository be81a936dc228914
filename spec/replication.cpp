// Explicit-state model of the replication protocol (docs/protocol.md, sections 3, 4, 5, 7): its actions.
//
// One shard, and whether its split is sound. Each function below is one or two actions of the protocol: what a process
// does in one step, with its guard. spec/README.md says which function of the code is which action.
// Build: g++ -O2 -std=c++17 -o model replication.cpp ; help: ./model -h
#include "state.hpp"
#include "search.hpp"

// The first closed segment of the map begins a split; from then on every segment of the shard is closed.
static bool stays_closed(const State &s) { return s.split_x && !m_reopens; }

// Action OpenSegment: finish the fence f.
static void open_segment(const State &s, int f, const Emit &emit) {
  Epoch F = s.epoch[f];
  if (F.status != RESERVED || F.view_open != s.open || (!m_guard && F.view_prepared != s.prepared)) return;
  int e = F.view_open, e2 = F.view_prepared;
  int V = cfg(s, e).voters, V2 = e2 ? cfg(s, e2).voters : 0, given = 0;
  if (m_nonvoter) V = cfg(s, e).replicas;
  if (m_oldanswers) for (int i = 1; i < f; i++) if (s.epoch[i].status == RESERVED && s.epoch[i].view_open == e)
    for (int p = 0; p < peers; p++) if (s.epoch[i].answer[p].given && !F.answer[p].given) F.answer[p] = s.epoch[i].answer[p];
  for (int p = 0; p < peers; p++) if (F.answer[p].given) given |= 1 << p;
  int done = 0;                                             // (ended_by_e2, x, y) seen: 1 + 4 + 4 values
  for (int K = given;; K = (K - 1) & given) {
    bool next = false; int x2 = 0;
    std::vector<int> ends, ends2;
    for (int p = 0; p < peers; p++) if (K >> p & 1) {
      const Answer &A = F.answer[p];
      if (A.next && !m_ignore_adopt) { next = true; x2 = A.x; }
      if (V >> p & 1) ends.push_back(A.end);
    }
    if (next) for (int p = 0; p < peers; p++) if ((K & V2) >> p & 1) ends2.push_back(F.answer[p].next ? F.answer[p].end2 : x2);
    int n = bits(cfg(s, e).voters), a = cfg(s, e).acks, n2 = bits(V2), a2 = e2 ? cfg(s, e2).acks : 0;
    int less = m_quorum ? 1 : 0;
    // e's own answers are needed only if nobody is known to have adopted e2
    bool enough = next || ((int)ends.size() >= n - a + 1 - less && !ends.empty());
    bool enough2 = !e2 || m_fencevoters || bits(K & V2) >= n2 - a2 + 1 - less;
    if (next && ends2.empty()) enough2 = false;
    if (m_splitunasked && e2 && cfg(s, e2).closed) enough2 = true;
    if (stays_closed(s)) {                                  // closed segments hold nothing and never will: no answer counts
      if (K) continue;
      next = false; enough = enough2 = true; ends.assign(n - a + 1, s.epoch[e].begin);
    }
    if (enough && enough2) {
      int x = next ? x2 : cut(ends, n, a), y = next ? cut(ends2, n2, a2) : x;
      int key = (next ? 16 : 0) + x * 4 + y;
      if (!(done >> key & 1)) {
        done |= 1 << key;
        for (size_t c = 0; c < configs.size(); c++) {
          if (!s.peer[configs[c].primary].alive) continue;
          if (configs[c].closed != stays_closed(s)) continue;
          State t = s;
          t.epoch[e].status = SEALED; t.epoch[e].end = x;
          if (x < t.epoch[e].begin) broken("G7 a segment ends before it begins");
          if (e2) {
            t.epoch[e2].status = next ? SEALED : DEAD;
            if (next) { t.epoch[e2].begin = x; t.epoch[e2].end = y; }
          }
          Epoch &T = t.epoch[f];
          T.status = OPEN; T.config = c; T.begin = y; T.may_start = 1; T.assigned = y;
          if (t.prepared != e2) t.epoch[t.prepared].status = DEAD;           // only a mutant's guard lets this be
          t.open = f; t.prepared = 0;
          if (m_fencekeeps && e2 && configs[s.epoch[e2].config].closed && !t.split_x) t.split_x = x + 1;
          int table = 0;
          if (!m_table) for (int i = 1; i < f; i++) if (t.epoch[i].status == SEALED)
            for (int o = t.epoch[i].begin; o < t.epoch[i].end; o++) table |= 1 << content(t, i, o);
          if (m_tabtail) for (int i = 1; i < f; i++) for (int o = 0; o < NO; o++)   // table not cut back to X
            if (t.peer[configs[c].primary].seg[i].present && o < t.peer[configs[c].primary].seg[i].end && o >= t.peer[configs[c].primary].seg[i].begin)
              table |= 1 << t.peer[configs[c].primary].seg[i].rec[o];
          T.table = table & ~1;
          check_map(t);
          emit(t, SAY("LAS: OpenSegment(%d) view %d/%d answers from {%s%s%s%s } ends %d at %d%s, begins at %d, primary p%d, plan %zu", f, e, e2,
               K & 1 ? " p0" : "", K & 2 ? " p1" : "", K & 4 ? " p2" : "", K & 8 ? " p3" : "", e, x, next ? " (e' recovered)" : "", y, configs[c].primary, c));
        }
      }
    }
    if (!K) break;
  }
}

// Action Order: the primary p of e puts a record at its end. A closed segment (a split) takes none.
static void order(const State &s, int p, int e, const Emit &emit) {
  const Epoch &E = s.epoch[e];
  if (cfg(s, e).closed) return;
  if (E.assigned < offsets) {                           // order a batch
    int table = table_at(s, e, E.assigned);
    for (int r = 1; r <= records; r++) if (!(table >> r & 1)) {
      if (r > 1 && !s.floor_[r - 1]) continue;          // symmetry: ids appear in order
      State t = s; Epoch &T = t.epoch[e];
      int o = T.assigned++;
      T.cur[o] = r; if (!v_writefirst) T.sent[o] |= 1 << r;
      if (!t.floor_[r] && s.child_acked) t.late |= 1 << r;
      if (!t.floor_[r]) t.floor_[r] = acked_end(s) + 1;
      emit(t, SAY("p%d orders record %d at offset %d of epoch %d", p, r, o, e));
    }
  }
}

// Action Acknowledge, as-built alone: the commit offset that p knows passes the next batch. Else acknowledge_all() does it.
static void acknowledge_next(const State &s, int p, int e, const Emit &emit) {
  if (!v_built || s.epoch[e].known >= commit_offset(s, e)) return;
  State t = s; int o = t.epoch[e].known++, r = s.epoch[e].cur[o];
  acknowledge(t, e, o, r);
  emit(t, SAY("p%d acknowledges record %d at offset %d of epoch %d", p, r, o, e));
}

// Action AnswerRetry: a retry of a record that the table knows from an older segment.
static void answer_retry(const State &s, int p, int e, const Emit &emit) {
  const Epoch &E = s.epoch[e];
  if (with_fetch) for (int i = 1; i < e; i++) if (s.epoch[i].status == SEALED)
    for (int o = s.epoch[i].begin; o < s.epoch[i].end; o++) if (!s.ack_epoch[o]) {
      int r = content(s, i, o), copies = 0;
      if (!(s.epoch[e].table >> r & 1)) continue;
      for (int q = 0; q < peers; q++) copies += s.peer[q].alive && holds(s, q, i, o, r);
      if (!m_dup && copies < cfg(s, i).acks) continue;
      State t = s; acknowledge(t, i, o, r);
      emit(t, SAY("p%d (epoch %d) answers a retry of record %d: offset %d of epoch %d", p, e, r, o, i));
    }
  if (m_tabtail) for (int r = 1; r <= records; r++) if (E.table >> r & 1) {   // answered, but not in the log
    bool found = false;
    for (int i = 1; i < e; i++) if (s.epoch[i].status == SEALED) for (int o = s.epoch[i].begin; o < s.epoch[i].end; o++) found |= content(s, i, o) == r;
    if (!found) { broken("G1 a retry is answered from a batch that was cut off"); emit(s, SAY("p%d (epoch %d) answers a retry of record %d", p, e, r)); }
  }
}

// Actions Decline and Switch: p will never switch to e2; or it stops in e for good and sends Begin(e2, X), where X is its
// commit offset.
static void decline_or_switch(const State &s, int p, int e, const Emit &emit) {
  for (int e2 = e + 1; e2 < s.next_epoch; e2++) {
    const Epoch &N = s.epoch[e2];
    if (N.view_open != e || (N.switched && !(m_decline && N.switched == 2)) || (N.status != PREPARED && N.status != DEAD)) continue;
    if (N.view_prepared != e2) continue;                // not a prepared epoch
    if ((N.status == PREPARED || v_built) && !N.switched) {
      State t = s; t.epoch[e2].switched = 2;
      emit(t, SAY("p%d declines epoch %d", p, e2));
    }
    State t = s; Epoch &T = t.epoch[e2];
    int x = m_nodrain ? s.epoch[e].assigned : known_commit(s, e);
    if (v_drain && x != s.epoch[e].assigned) continue;
    T.switched = 1; T.x = x; T.table = m_table ? 0 : table_at(s, e, x);
    if (m_tabtail) T.table = table_at(s, e, s.epoch[e].assigned);
    if (!m_nostop) t.peer[p].role = 0;
    emit(t, SAY("p%d stops in epoch %d, sends Begin(%d, X=%d)", p, e, e2, x));
  }
}

// Action GetTail: a linearizable read; only one that would answer too little is worth following.
static void get_tail(const State &s, int p, int e, const Emit &emit) {
  if (with_read && !s.read_peer && known_commit(s, e) < acked_end(s)) {
    State t = s; t.read_peer = p + 1; t.read_epoch = e; t.read_bits = 0;
    emit(t, SAY("p%d (epoch %d) gets GetTail(linearizable), its commit offset is stale", p, e));
  }
}

// Action BecomePrimary: from Begin (prepared) or from a committed OpenSegment.
static void become_primary(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  for (int f = 1; f < s.next_epoch; f++) {
    const Epoch &F = s.epoch[f];
    if (!F.may_start || F.status == RESERVED || cfg(s, f).primary != p || (P.promised > f && !v_built) || P.role >= f) continue;
    bool planned = F.view_prepared == f;
    if (planned && F.switched != 1) continue;
    if (m_restart_begin && F.begun && P.adopted >= f) continue;
    State t = s; start(t, p, f, planned ? F.x : F.begin);
    emit(t, SAY("p%d begins epoch %d at %d as primary", p, f, t.epoch[f].begin));
  }
}

// Only mutants: restart and go on in the same epoch.
static void resume(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  if ((m_resume || m_resume_orig) && !P.role && s.crashes) for (int f = 1; f < s.next_epoch; f++) {
    const Epoch &F = s.epoch[f];
    if (cfg(s, f).primary != p || !F.begun || F.status == RESERVED || P.promised > f || P.adopted != f) continue;
    bool sealed = false;
    for (int i = f + 1; i < s.next_epoch; i++) sealed |= s.epoch[i].view_open == f && s.epoch[i].switched == 1;
    if (sealed && !m_sealvolatile) continue;
    int ok = 0;
    for (int q = 0; q < peers; q++) if (cfg(s, f).voters >> q & 1) ok += s.peer[q].alive && s.peer[q].promised <= f;
    if (m_resume_orig && ok < cfg(s, f).acks) continue;
    State t = s; Epoch &T = t.epoch[f];
    t.peer[p].role = f; T.assigned = t.peer[p].seg[f].end;
    for (int o = 0; o < NO; o++) T.cur[o] = (o >= T.begin && o < T.assigned) ? t.peer[p].seg[f].rec[o] : 0;
    acknowledge_all(t, f);
    emit(t, SAY("p%d, restarted, goes on in epoch %d with end %d", p, f, T.assigned));
  }
}

// Actions Adopt and Replicate: a replica begins an epoch, or stores the batch at its end.
static void adopt_or_replicate(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  for (int e = 1; e < s.next_epoch; e++) {
    const Epoch &E = s.epoch[e];
    if (!E.begun || !(cfg(s, e).replicas >> p & 1)) continue;
    if (P.adopted < e && (P.promised <= e || m_adopt)) {  // Adopt
      if (p == cfg(s, e).primary && P.role != e && !v_built) continue;
      State t = s; adopt(t, p, e); check_state(t);
      emit(t, SAY("p%d adopts epoch %d at %d", p, e, E.begin));
    }
    if (P.adopted != e || (P.promised > e && !m_queue && !m_adopt)) continue;
    int o = P.seg[e].end;                                 // Replicate with base = its end
    if (o >= offsets) continue;
    for (int r = 1; r <= records; r++) if ((E.sent[o] >> r & 1) || (v_writefirst && p == cfg(s, e).primary && E.cur[o] == r)) {
      if (p == cfg(s, e).primary && !v_built && (P.role != e || o >= E.assigned || E.cur[o] != r)) continue;
      State t = s; Seg &g = t.peer[p].seg[e];
      g.rec[o] = r; g.end = o + 1;
      if (p == cfg(s, e).primary) t.epoch[e].sent[o] |= 1 << r;
      t.epoch[e].acked_end[p] = std::max((int)t.epoch[e].acked_end[p], o + 1);
      if (P.promised > e && !m_adopt && !m_queue) broken("G6 an older epoch changed a store");
      acknowledge_all(t, e);
      emit(t, SAY("p%d stores record %d at offset %d of epoch %d, durable", p, r, o, e));
    }
  }
}

// Action Promise: a voter promises f and answers with its end in e and what it has of e'.
static void promise(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  for (int f = 1; f < s.next_epoch; f++) {                // Promise(f)
    const Epoch &F = s.epoch[f];
    if (F.status == FREE || F.status == PREPARED || F.view_prepared == f || f == 1) continue;
    if (F.answer[p].given || P.promised >= f) continue;
    int e = F.view_open, e2 = F.view_prepared;
    int asked = cfg(s, e).voters | (e2 && !m_fencevoters ? cfg(s, e2).voters : 0);
    if (m_nonvoter) asked |= cfg(s, e).replicas;
    if (!(asked >> p & 1)) continue;
    State t = s; Answer &A = t.epoch[f].answer[p];
    t.peer[p].promised = f;
    depose(t, p, f);
    A.given = 1;
    A.end = P.seg[e].present ? P.seg[e].end : s.epoch[e].begin;
    if (m_stale_end) { int end = 0; for (int i = 1; i < f; i++) if (P.seg[i].present) end = std::max(end, (int)P.seg[i].end); A.end = end; }
    if (e2 && P.seg[e2].present) { A.next = 1; A.x = P.seg[e2].begin; A.end2 = P.seg[e2].end; }
    emit(t, SAY("p%d promises %d: end %d%s", p, f, A.end, A.next ? ", adopted e'" : ""));
  }
}

// Action ConfirmEpoch: a voter says that it promised nothing above the epoch of the reader.
static void confirm_epoch(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  if (s.read_peer && (cfg(s, s.read_epoch).voters >> p & 1) && !(s.read_bits >> p & 1) && P.promised <= s.read_epoch &&
      s.peer[s.read_peer - 1].role == s.read_epoch) {
    State t = s; t.read_bits |= 1 << p;
    const Config &c = cfg(s, s.read_epoch);
    int need = m_read ? bits(c.voters) - c.acks + 1 : c.acks;
    if (bits(t.read_bits) >= need) broken("LIN a linearizable read misses an acknowledged batch");
    emit(t, SAY("p%d confirms that it promised nothing above %d", p, s.read_epoch));
  }
}

// Actions Crash and LoseStore.
static void crash_or_lose(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  if (s.crashes < max_crash && (P.role || [&] { for (int e = 1; e < s.next_epoch; e++) if (s.epoch[e].may_start && s.epoch[e].status != RESERVED && cfg(s, e).primary == p) return true; return false; }())) {
    State t = s; t.crashes++; t.peer[p].role = 0;         // only a process with volatile state differs
    if (!m_restart_begin) for (int e = 1; e < s.next_epoch; e++) if (cfg(s, e).primary == p) t.epoch[e].may_start = 0;
    if (t.read_peer == p + 1) t.read_peer = t.read_epoch = t.read_bits = 0;
    emit(t, SAY("p%d crashes and restarts", p));
  }
  if (s.losses < max_loss) {
    State t = s; t.losses++;
    t.peer[p] = Peer{};
    t.peer[p].alive = m_lostsame ? 1 : 0;
    for (int e = 1; e < s.next_epoch; e++) if (cfg(s, e).primary == p) t.epoch[e].may_start = 0;
    if (t.read_peer == p + 1) t.read_peer = t.read_epoch = t.read_bits = 0;
    check_state(t);
    emit(t, SAY("p%d loses its data directory%s", p, m_lostsame ? " and comes back under the same identity" : ""));
  }
}

// Actions LearnMap (fences, and drops what the map does not name; variants) and the mutant that forgets its promise.
static void learn_map(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  if (v_learn) for (int e = v_built ? P.promised + 1 : s.open; e <= s.open; e++) {   // any news of the map is a promise
    if (P.promised >= e || (s.epoch[e].status != OPEN && s.epoch[e].status != SEALED)) continue;
    State t = s; t.peer[p].promised = e; depose(t, p, e);
    emit(t, SAY("p%d learns that epoch %d is open", p, e));
  }
  if (v_trim) for (int e = 1; e < s.next_epoch; e++) {    // the committed map lets a store drop what it does not name
    const Epoch &E = s.epoch[e]; const Seg &g = P.seg[e];
    if (!g.present || !((E.status == SEALED && g.end > E.end) || (E.status == DEAD && g.end > g.begin))) continue;
    State t = s; Seg &d = t.peer[p].seg[e];
    d.end = E.status == SEALED ? std::max((int)d.begin, (int)E.end) : d.begin;
    for (int o = d.end; o < NO; o++) d.rec[o] = 0;
    check_state(t);
    emit(t, SAY("p%d learns the map and drops its tail of epoch %d", p, e));
  }
  if (m_forget && s.open && !(cfg(s, s.open).replicas >> p & 1) && !(s.prepared && (cfg(s, s.prepared).replicas >> p & 1)) && P.promised) {
    State t = s; t.peer[p].promised = 0; t.peer[p].adopted = 0;   // forgets the shard; keeps what nobody else holds
    for (int e = 1; e < s.next_epoch; e++) if (P.seg[e].present && s.epoch[e].status == SEALED) {
      bool other = false;
      for (int q = 0; q < peers; q++) other |= q != p && s.peer[q].alive && whole(s, q, e);
      if (other) t.peer[p].seg[e] = Seg{};
    }
    emit(t, SAY("p%d drops the shard and forgets its promise", p));
  }
}

// Action Fetch: a replica of the open segment fills a sealed one from a holder.
static void fetch(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  if (with_fetch && !v_built && s.open && (cfg(s, s.open).replicas >> p & 1)) for (int e = 1; e < s.open; e++)
    if (s.epoch[e].status == SEALED && !whole(s, p, e)) for (int q = 0; q < peers; q++)
      if (q != p && s.peer[q].alive && whole(s, q, e)) {
        State t = s; Seg &g = t.peer[p].seg[e];
        if (!m_fetch) { t.peer[p].promised = std::max(P.promised, s.open); depose(t, p, s.open); }
        g = s.peer[q].seg[e]; g.end = s.epoch[e].end;
        for (int o = g.end; o < NO; o++) g.rec[o] = 0;
        emit(t, SAY("p%d fetches sealed segment %d from p%d", p, e, q));
        break;
      }
  if (with_fetch && v_built) for (int e = 1; e < s.open; e++) if (s.epoch[e].status == SEALED && !whole(s, p, e))
    for (int n = e + 1; n <= s.open; n++) if (s.epoch[n].status == OPEN || s.epoch[n].status == SEALED) {
      State t = s; Seg &g = t.peer[p].seg[e];
      if (!g.present) { g.present = 1; g.begin = g.end = s.epoch[e].begin; }
      int o = g.end, r = 0;
      for (int q = 0; q < peers && !r; q++) {
        const Seg &h = s.peer[q].seg[e];
        if (q != p && s.peer[q].alive && h.present && h.begin <= o && o < h.end) r = h.rec[o];
      }
      if (!r) continue;
      t.peer[p].promised = std::max((int)P.promised, n); depose(t, p, n);
      g.rec[o] = r; g.end = o + 1;
      emit(t, SAY("p%d fetches offset %d of sealed epoch %d, knows that %d was open", p, o, e, n));
    }
}

// Actions PrepareSegment (with a closed plan: PrepareSplit) and FenceSegment.
static void prepare_or_fence(const State &s, const Emit &emit) {
  if (s.next_epoch < NE) {
    if (!s.prepared && s.preps < max_prep) for (size_t c = 0; c < configs.size(); c++) {
      if (!s.peer[configs[c].primary].alive || (s.split_x && configs[c].closed != stays_closed(s))) continue;
      State t = s; int e = t.next_epoch++; Epoch &T = t.epoch[e];
      t.preps++; t.prepared = e;
      T.status = PREPARED; T.config = c; T.view_open = s.open; T.view_prepared = e; T.may_start = 1;
      if (m_xprepare) T.end = commit_offset(s, s.open);
      emit(t, SAY("LAS: PrepareSegment(%d -> %d), primary p%d voters %x acks %d, plan %zu%s", s.open, e, configs[c].primary, configs[c].voters, configs[c].acks, c, configs[c].closed ? ", closed: a split" : ""));
    }
    if (s.fences < max_fence) {
      State t = s; int f = t.next_epoch++; Epoch &T = t.epoch[f];
      t.fences++; T.status = RESERVED; T.view_open = s.open; T.view_prepared = s.prepared;
      emit(t, SAY("LAS: fence with epoch %d, sees open %d prepared %d", f, s.open, s.prepared));
    }
  }
}

// Action SegmentOpened. Of a closed segment: the map splits the shard at X, and the children begin.
static void segment_opened(const State &s, const Emit &emit) {
  if (s.prepared && s.epoch[s.prepared].begun) {            // Confirm
    int e2 = s.prepared, e = s.open;
    State t = s;
    t.epoch[e].status = SEALED; t.epoch[e].end = s.epoch[e2].begin;
    t.epoch[e2].status = OPEN; t.open = e2; t.prepared = 0;
    if (cfg(s, e2).closed && !t.split_x) t.split_x = (m_xprepare ? s.epoch[e2].end : s.epoch[e2].begin) + 1;
    if (t.epoch[e].end < t.epoch[e].begin) broken("G7 a segment ends before it begins");
    check_map(t);
    emit(t, SAY("LAS: SegmentOpened(%d, X=%d)", e2, s.epoch[e2].begin));
  }
}

// Action WithdrawSegment: only what its old primary declined.
static void withdraw(const State &s, const Emit &emit) {
  if (s.prepared && (m_withdraw || s.epoch[s.prepared].switched == 2)) {
    State t = s; t.epoch[s.prepared].status = DEAD; t.prepared = 0;
    check_state(t);
    emit(t, SAY("LAS: withdraws prepared %d", s.prepared));
  }
}

// Actions AnswerSplit and ChildAcks (protocol.md 4.3). The primary p of the closed segment e answers a retry from its
// table; of a record that is not in it, it says SPLIT once the map has the split. The children are shards of their own,
// which begin empty; all that matters here is when.
static void split(const State &s, const Emit &emit) {
  for (int p = 0; p < peers; p++) {
    int e = s.peer[p].role;
    if (!s.peer[p].alive || !e || !cfg(s, e).closed) continue;
    if (!m_splitearly && (!s.split_x || (s.open != e && !m_splitdead))) continue;
    for (int r = 1; r <= records; r++) {
      if ((!m_splittable && s.epoch[e].table >> r & 1) || !s.floor_[r] || s.split_said >> r & 1) continue;
      State t = s; t.split_said |= 1 << r;
      for (int o = 0; o < offsets; o++) if (s.ack_epoch[o] && s.ack_rec[o] == r) broken("G4 a record that was acknowledged is refused with SPLIT");
      check_map(t);
      emit(t, SAY("p%d (epoch %d) answers a retry of record %d with SPLIT", p, e, r));
    }
  }
  bool begun = s.split_x;
  for (int e = 1; e < s.next_epoch; e++) if (s.epoch[e].status != RESERVED && cfg(s, e).closed)
    begun |= (m_childprepare && s.prepared == e) || (m_childbegin && s.epoch[e].begun);
  if (!begun || s.child_acked) return;
  State t = s; t.child_acked = 1;
  emit(t, SAY("a child shard acknowledges a batch"));
}

// Action Serve (protocol.md 7): p serves a reader what lies below X of a sealed segment. Of a kept tail only what is durable
// on `acks` stores. What lies below a commit offset is acknowledged, and following it would show nothing new.
static void serve_readers(const State &s, int p, const Emit &emit) {
  const Peer &P = s.peer[p];
  for (int e = 1; e < s.next_epoch; e++) {
    const Epoch &E = s.epoch[e];
    const Seg &g = P.seg[e];
    for (int o = g.begin; g.present && o < g.end; o++) {
      int r = g.rec[o], copies = 0;
      for (int q = 0; q < peers; q++) copies += s.peer[q].alive && holds(s, q, e, o, r);
      bool sealed = E.status == SEALED && o < E.end && (m_keptearly || copies >= cfg(s, e).acks);
      bool old_tail = m_oldtail && E.status == SEALED && o >= E.end;
      bool own_end = m_ownend && E.status == OPEN && P.adopted == e;
      if (!sealed && !old_tail && !own_end) continue;
      State t = s;
      if (serve(t, e, o, r)) emit(t, SAY("p%d serves a reader record %d at offset %d of epoch %d", p, r, o, e));
    }
  }
  int f = P.role;                                           // a tail that is told covers all below it
  if (m_tailkept && f && s.open == f) {
    State t = s; bool told = false;
    for (int e = 1; e < f; e++) if (s.epoch[e].status == SEALED)
      for (int o = s.epoch[e].begin; o < s.epoch[e].end; o++) told |= serve(t, e, o, content(s, e, o));
    if (told) emit(t, SAY("p%d (epoch %d) tells a tail at or above %d", p, f, s.epoch[f].begin));
  }
}

static void successors(const State &s, const Emit &emit) {
  for (int p = 0; p < peers; p++) {
    int e = s.peer[p].role;
    if (!s.peer[p].alive) continue;
    if (e) {
      order(s, p, e, emit);
      acknowledge_next(s, p, e, emit);
      answer_retry(s, p, e, emit);
      decline_or_switch(s, p, e, emit);
      get_tail(s, p, e, emit);
    }
    become_primary(s, p, emit);
    resume(s, p, emit);
  }
  for (int p = 0; p < peers; p++) {
    if (!s.peer[p].alive) continue;
    adopt_or_replicate(s, p, emit);
    promise(s, p, emit);
    confirm_epoch(s, p, emit);
    crash_or_lose(s, p, emit);
    learn_map(s, p, emit);
    fetch(s, p, emit);
    if (with_kept) serve_readers(s, p, emit);
  }
  prepare_or_fence(s, emit);
  segment_opened(s, emit);
  withdraw(s, emit);
  for (int f = 1; f < s.next_epoch; f++) open_segment(s, f, emit);
  if (with_split) split(s, emit);
}

// Clears what no later step and no check can read, so that states which differ only there are one.
static void normalize(State &s) {
  if (m_resume || m_resume_orig || m_ackepoch || m_restart_begin) return;
  for (int e = 1; e < s.next_epoch; e++) {
    Epoch &E = s.epoch[e];
    if (!E.may_start) E.x = 0;                              // a repeated Begin starts nothing
    if (E.status != RESERVED || E.view_open != s.open) memset((void *)E.answer, 0, sizeof E.answer);   // no guard lets it through
    bool orders = E.status != RESERVED && (s.peer[cfg(s, e).primary].role == e || E.may_start);
    if (!orders) { E.table = 0; E.assigned = E.known = 0; memset(E.acked_end, 0, NP); }
  }
}

static void parse_configs(const char *text) {   // "P:voters:nonvoters:acks,…" e.g. "0:01::2,1:12:0:2"; "!" = closed
  std::string s(text); size_t i = 0;
  while (i < s.size()) {
    Config c{0, 0, 0, 0, false}; c.primary = s[i] - '0'; i += 2;
    for (; s[i] != ':'; i++) c.voters |= 1 << (s[i] - '0');
    i++; c.replicas = c.voters;
    for (; s[i] != ':'; i++) c.replicas |= 1 << (s[i] - '0');
    i++; c.acks = s[i++] - '0';
    if (s[i] == '!') { c.closed = true; i++; with_split = true; }
    i++;
    configs.push_back(c);
  }
}

int main(int argc, char **argv) {
  size_t limit = 4000000000u; double seconds = 1e9, walk_s = 0; bool edges_shown = false; uint64_t seed = 1; bool show = true; const char *configs_text = "0:01::2,1:12::2,2:02::2";
  for (int i = 1; i < argc; i++) {
    std::string a = argv[i]; auto num = [&] { return atoi(argv[++i]); };
    if (a == "-p") peers = num(); else if (a == "-o") offsets = num(); else if (a == "-r") records = num();
    else if (a == "-c") max_crash = num(); else if (a == "-l") max_loss = num(); else if (a == "-s") max_prep = num();
    else if (a == "-f") max_fence = num(); else if (a == "-g") configs_text = argv[++i]; else if (a == "-x") with_fetch = true;
    else if (a == "-m") mutants.push_back(argv[++i]); else if (a == "-n") limit = (size_t)atof(argv[++i]);
    else if (a == "-t") seconds = atof(argv[++i]); else if (a == "-q") show = false; else if (a == "-R") with_read = false;
    else if (a == "-k") with_kept = true; else if (a == "--edges") edges_shown = true;
    else if (a == "-w") walk_s = atof(argv[++i]); else if (a == "-S") seed = num();
    else { puts("-p peers -o offsets -r records -c crashes -l lost stores -s switches -f fences -x (fetch and retries)\n"
                "-g configs P:voters:nonvoters:acks,... -m mutant -n state limit -t seconds -q (no trace) -R (no reads)\n"
                "-k (readers of a kept tail); a config with ! at its end is closed, which makes it a split\n"
                "-w seconds of random walks instead of the full search, -S seed\n"
                "--edges (print every state with its transitions: state, label, state)"); return 2; }
  }
  parse_configs(configs_text);
  if (peers > NP || offsets > NO || 1 + max_prep + max_fence >= NE || records > 3) { puts("bounds larger than the arrays: build with -DPEERS -DEPOCHS -DOFFSETS"); return 2; }
  m_quorum = M("fence-quorum"); m_queue = M("promise-overtakes-queue"); m_nostop = M("primary-does-not-stop"); m_fencevoters = M("prepared-not-fenced");
  m_min = M("x-min"); m_naive = M("x-ignores-silent"); m_max = M("x-max"); m_resume = M("restart-resumes"); m_resume_orig = M("restart-resumes-asks");
  m_sealvolatile = M("seal-volatile"); m_lostsame = M("lost-store-same-id"); m_read = M("read-quorum"); m_table = M("table-not-carried");
  m_ackepoch = M("ack-without-epoch"); m_stale_end = M("end-without-epoch"); m_guard = M("guard-without-prepared"); m_dup = M("retry-answered-early");
  m_forget = M("promise-forgotten"); m_restart_begin = M("begin-twice"); m_ignore_adopt = M("adoption-ignored"); m_withdraw = M("prepare-withdrawn");
  m_adopt = M("adopt-below-promise"); m_nodrain = M("x-is-end"); m_drop = M("adoption-drops-tail"); m_nonvoter = M("non-voters-counted");
  v_drain = M("drain"); v_writefirst = M("write-first"); v_trim = M("map-drops-tail"); v_learn = M("map-fences"); m_decline = M("decline-forgotten"); m_oldanswers = M("old-answers-counted"); m_fetch = M("fetch-without-promise"); m_tabtail = M("table-keeps-tail");
  m_keptearly = M("kept-tail-read-early"); m_oldtail = M("old-tail-read"); m_ownend = M("own-end-read"); m_tailkept = M("tail-covers-kept");
  m_reopens = M("parent-reopens"); m_childprepare = M("child-begins-at-prepare"); m_childbegin = M("child-begins-at-begin");
  m_splitearly = M("split-answered-early"); m_splittable = M("split-without-table"); m_splitdead = M("split-answered-by-dead");
  m_xprepare = M("x-noted-at-prepare"); m_fencekeeps = M("split-kept-by-fence");
  m_splitunasked = M("split-prepared-not-asked");
  v_built = M("as-built"); v_trim |= v_built; v_learn |= v_built;
  State s; memset(&s, 0, sizeof s);
  for (int p = 0; p < peers; p++) s.peer[p].alive = 1;
  s.open = 1; s.next_epoch = 2;
  s.epoch[1].status = OPEN; s.epoch[1].begun = 1;
  s.peer[configs[0].primary].role = 1;
  for (int p = 0; p < peers; p++) if (configs[0].replicas >> p & 1) { s.peer[p].promised = s.peer[p].adopted = 1; s.peer[p].seg[1].present = 1; }
  if (walk_s > 0) return walk(s, walk_s, seed, 80, show);
  insert(s, 0);
  clock_t begin = clock(); size_t depth = 0, level_end = 1; uint64_t edges = 0; bool bad = false, full = false;
  for (size_t i = 0; i < count_ && !bad && !full; i++) {
    if (i == level_end) { depth++; level_end = count_; }
    State here = at(i);
    violation.clear();
    successors(here, [&](const State &t, const char *l) {
      edges++;
      if (bad) return;
      if (!violation.empty()) {
        bad = true; std::string v = violation, last = l;
        printf("VIOLATED %s | steps %zu | states %zu | %.1f s\n", v.c_str(), depth + 1, count_, double(clock() - begin) / CLOCKS_PER_SEC);
        if (show) trace(i, last.c_str());
        return;
      }
      State u = t; normalize(u);
      insert(u, i);
      if (edges_shown) printf("%zu\t%s\t%zu\n", i, l, index_of(u));
    });
    if (!bad && !violation.empty()) { printf("VIOLATED %s (no step)\n", violation.c_str()); bad = true; }
    if (count_ > limit || ((i & 4095) == 0 && double(clock() - begin) / CLOCKS_PER_SEC > seconds)) full = true;
  }
  if (bad) return 1;
  printf("%s | states %zu | edges %llu | depth %zu | %.1f s\n", full ? "NO VIOLATION FOUND, search cut off" : "HOLDS, search complete", count_, (unsigned long long)edges, depth, double(clock() - begin) / CLOCKS_PER_SEC);
  return full ? 3 : 0;
}
