#include "pool.hpp"

#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#define SOFTGATE_PID() getpid()
#else
#define SOFTGATE_PID() 0
#endif

namespace softgate {
namespace {

class Pool {
  public:
    const int owner = int(SOFTGATE_PID());

    // False if another call is using the workers.
    bool try_run(int count, const std::function<void(int)>& task) {
        std::unique_lock<std::mutex> use(in_use_, std::try_to_lock);
        if (!use.owns_lock()) return false;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (workers_ < count - 1) std::thread(&Pool::work, this, workers_++).detach();
            task_ = &task;
            active_ = count - 1;
            running_ = count - 1;
            ++generation_;
        }
        wake_.notify_all();
        task(count - 1);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return running_ == 0; });
        return true;
    }

  private:
    void work(int index) {
        long seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return generation_ != seen && index < active_; });
            seen = generation_;
            const std::function<void(int)>* task = task_;
            lock.unlock();
            (*task)(index);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex in_use_, mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int)>* task_ = nullptr;
    long generation_ = 0;
    int workers_ = 0, active_ = 0, running_ = 0;
};

// Never destroyed: sleeping workers end with the process. A forked child owns no workers, so it starts a fresh pool.
Pool& pool() {
    static std::mutex guard;
    static Pool* current = nullptr;
    std::lock_guard<std::mutex> lock(guard);
    if (current == nullptr || current->owner != int(SOFTGATE_PID())) current = new Pool;
    return *current;
}

}  // namespace

void parallel(int count, const std::function<void(int)>& task) {
    if (count > 1 && pool().try_run(count, task)) return;
    for (int i = 0; i < count; ++i) task(i);
}

}  // namespace softgate
