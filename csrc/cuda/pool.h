// Things that are made once and used again, because making them costs a driver call that may wait
// for the device.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/runtime.h"

namespace crossover {

/// Any thread. What was taken may outlive the pool.
template <class T>
class Pool {
 public:
  explicit Pool(std::shared_ptr<CudaRuntime> runtime) : state_(std::make_shared<State>()) {
    state_->runtime = std::move(runtime);
  }

  /// A free one for which `fits(T&)` holds, else the one that `make()` makes. It is free again when
  /// its last owner lets it go, whatever the device still does with it.
  template <class Fits, class Make>
  std::shared_ptr<T> take(Fits fits, Make make) {
    std::unique_ptr<T> taken = state_->find(fits);
    if (!taken) taken = make();
    return {taken.release(), [state = state_](T* item) { state->give(std::unique_ptr<T>(item)); }};
  }

 private:
  struct State {
    template <class Fits>
    std::unique_ptr<T> find(Fits fits) {
      const std::lock_guard lock(mutex);
      const auto found = std::find_if(free.begin(), free.end(),
                                      [&](const std::unique_ptr<T>& item) { return fits(*item); });
      if (found == free.end()) return nullptr;
      std::unique_ptr<T> taken = std::move(*found);
      free.erase(found);
      return taken;
    }
    void give(std::unique_ptr<T> item) {
      const std::lock_guard lock(mutex);
      free.push_back(std::move(item));
    }

    std::shared_ptr<CudaRuntime> runtime;  // outlives what is pooled
    std::mutex mutex;
    std::vector<std::unique_ptr<T>> free;
  };

  std::shared_ptr<State> state_;
};

}  // namespace crossover
