#pragma once

namespace csv {

/// Makes this process one that the machine's own write-back may wait for: it neither waits for that
/// itself (PR_SET_IO_FLUSHER), nor is it swapped out (memory is locked as it is touched), nor ended
/// for others' hunger (oom_score_adj, unless a unit has set it). Called once, before threads are
/// made. What cannot be had is logged: it needs root.
void become_part_of_the_io_path(bool lock_memory = true);

}  // namespace csv
