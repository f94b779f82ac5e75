// Ids as they come to rows of a table as it is stored, by its IdMap: a pass of its own before the look-ups, whose loops
// know nothing of it. The gathers of a remap do not wait for each other here.
#pragma once

#include "abi.h"

namespace {

using recpress::IdMap;

// Whether an id is outside where that is an error; then what is written is not to be used.
template <class Index>
inline bool map_ids(const IdMap& map, const Index* ids, int64_t stride, int64_t count, Index* out) {
    bool bad = false;
    if (map.count == 0) return count != 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t id = ids[i * stride];
        bool outside = uint64_t(id) >= uint64_t(map.count);
        bad |= outside;
        id = outside ? map.oov : id;
        out[i] = Index(id);
    }
    if (map.oov < 0 && bad) return true;
    if (map.remap)
        for (int64_t i = 0; i < count; i++) out[i] = Index(map.remap[out[i]]);
    return false;
}

}  // namespace
