// A pool of threads for short pieces of work, one after another.
#pragma once
#include <stdint.h>

#include "platform.h"

namespace evs {

// Waking a thread that sleeps takes time, on a virtual machine as much as a segment of a small image. So a thread that
// waits looks for work for kSpinNs first, and sleeps only then. Linux may wake it on the processor of the caller, which
// is busy, and moves it only some milliseconds later; so the pool sees to it that workers wake elsewhere.
class Pool {
   public:
    using Task = void (*)(void *context, int item, int thread);

    // Starts threads - 1 threads; fewer if the system gives no more.
    explicit Pool(int threads);
    ~Pool();
    int threads() const { return threads_; }
    // Calls task for items 0 to count - 1, each once, on all threads; returns when all are done.
    void run(int count, Task task, void *context);

   private:
    struct Worker {
        Pool *pool;
        int number;
        Thread thread;
    };
    // Waits until ready() is true: looks first, then sleeps on the condition, for which others signal under the mutex.
    template <typename Ready>
    void wait(Condition &condition, int &sleepers, Ready ready);
    void wake(Condition &condition, const int &sleepers);
    static ThreadResult EVS_THREAD_CALL start(void *worker);
    void work(int thread);

    int threads_ = 1;
    Worker *workers_ = nullptr;
    int *ids_ = nullptr;  // of the workers, as the system knows them
    Mutex mutex_;
    Condition begin_, end_;
    int begin_sleepers_ = 0, end_sleepers_ = 0;
    // Those that several threads change are atomic, by the compiler's built-in functions.
    uint32_t round_ = 0;  // rises with every run
    int stop_ = 0;
    int next_ = 0;  // the first item that no thread has taken
    int busy_ = 0;  // threads that still work
    int count_ = 0;
    Task task_ = nullptr;
    void *context_ = nullptr;
};

}  // namespace evs
