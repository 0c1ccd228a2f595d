#include "cuda/stream_events.h"

#include <optional>
#include <utility>
#include <vector>

#include "cuda/resources.h"
#include "cuda/runtime.h"

namespace crossover {
namespace {

class CudaStreamEvents final : public StreamEvents {
 public:
  CudaStreamEvents(std::shared_ptr<CudaRuntime> runtime, int ordinal)
      : runtime_(std::move(runtime)), ordinal_(ordinal) {
    const DeviceScope scope(*runtime_, ordinal_);
    stream_.emplace(*runtime_);
  }

  void make_current() override {
    runtime_->set_current_device(ordinal_);
    runtime_->ignore_captures_of_other_threads();
  }
  StreamHandle stream() const override { return stream_->get(); }

  uint64_t record() override {
    if (free_.empty()) {
      free_.push_back(events_.size());
      events_.push_back(std::make_unique<CudaEvent>(*runtime_));
    }
    const uint64_t mark = free_.back();
    free_.pop_back();
    events_[mark]->record(stream_->get());
    return mark;
  }

  bool done(uint64_t mark) override {
    if (!events_[mark]->is_done()) return false;
    free_.push_back(mark);
    return true;
  }

 private:
  const std::shared_ptr<CudaRuntime> runtime_;
  const int ordinal_;
  std::optional<CudaStream> stream_;
  std::vector<std::unique_ptr<CudaEvent>> events_;  // by mark; kept and used again
  std::vector<uint64_t> free_;
};

}  // namespace

std::shared_ptr<StreamEvents> cuda_stream_events(std::shared_ptr<CudaRuntime> runtime,
                                                 int ordinal) {
  return std::make_shared<CudaStreamEvents>(std::move(runtime), ordinal);
}

}  // namespace crossover
