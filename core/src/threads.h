// A pool of threads that sleeps between runs.
#pragma once
#include <pthread.h>
#include <stdint.h>

namespace evs {

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
        pthread_t thread;
    };
    static void *start(void *worker);
    void work(int thread);

    int threads_ = 1;
    Worker *workers_ = nullptr;
    pthread_mutex_t mutex_;
    pthread_cond_t begin_, end_;
    uint64_t round_ = 0;
    bool stop_ = false;
    int count_ = 0, next_ = 0, busy_ = 0;
    Task task_ = nullptr;
    void *context_ = nullptr;
};

}  // namespace evs
