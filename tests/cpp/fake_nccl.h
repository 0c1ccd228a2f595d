// A libnccl.so.2 in host memory whose behaviour is scripted: ranks are communicators of one
// process, a stream is any number, a group begins when those before it on its stream are complete.
//
// It is as strict as the real one is unforgiving: a call on a communicator whose last call is in
// progress is an error, an unmatched transfer waits for ever, a dead peer is never reported.
//
// The script is "key=value;key=value"; CROSSOVER_FAKE_NCCL holds the first one.
//   version=V        what ncclGetVersion says
//   in_progress=K    polls that say ncclInProgress after each call
//   stuck_call=N     the N-th group of a communicator (from 0, the first contact) stays in progress
//   stuck_group=N    the N-th group is never complete
//   failing_group=N  an asynchronous error (ncclRemoteError) follows the N-th group
//   rank=R           the three above concern this rank alone
//   hang_end=1       ncclCommAbort and ncclCommDestroy do not return before the next script
#pragma once

#include <cstdint>

extern "C" {

/// Replaces the script and lets hung calls return.
void fake_nccl_script(const char* text);
/// Groups that the stream has got, and how many of them are complete.
uint64_t fake_nccl_enqueued(uintptr_t stream);
uint64_t fake_nccl_completed(uintptr_t stream);
/// A group begins only when this says so of its stream and its number there, from 1; null: at once.
void fake_nccl_begin_when(bool (*may_begin)(uintptr_t stream, uint64_t group));
/// Communicators that are neither aborted nor destroyed.
int fake_nccl_standing();

}  // extern "C"
