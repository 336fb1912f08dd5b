#include "threads.h"

#include <stdlib.h>

namespace evs {

Pool::Pool(int threads) {
    pthread_mutex_init(&mutex_, nullptr);
    pthread_cond_init(&begin_, nullptr);
    pthread_cond_init(&end_, nullptr);
    if (threads < 2) return;
    workers_ = static_cast<Worker *>(calloc(size_t(threads) - 1, sizeof(Worker)));
    if (workers_ == nullptr) return;
    for (int i = 1; i < threads; i++) {
        Worker &w = workers_[i - 1];
        w.pool = this, w.number = i;
        if (pthread_create(&w.thread, nullptr, start, &w) != 0) break;
        threads_++;
    }
}

Pool::~Pool() {
    pthread_mutex_lock(&mutex_);
    stop_ = true;
    pthread_cond_broadcast(&begin_);
    pthread_mutex_unlock(&mutex_);
    for (int i = 1; i < threads_; i++) pthread_join(workers_[i - 1].thread, nullptr);
    free(workers_);
    pthread_cond_destroy(&end_);
    pthread_cond_destroy(&begin_);
    pthread_mutex_destroy(&mutex_);
}

void *Pool::start(void *argument) {
    Worker &w = *static_cast<Worker *>(argument);
    Pool &p = *w.pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&p.mutex_);
    for (;;) {
        while (!p.stop_ && p.round_ == seen) pthread_cond_wait(&p.begin_, &p.mutex_);
        if (p.stop_) break;
        seen = p.round_;
        pthread_mutex_unlock(&p.mutex_);
        p.work(w.number);
        pthread_mutex_lock(&p.mutex_);
        if (--p.busy_ == 0) pthread_cond_signal(&p.end_);
    }
    pthread_mutex_unlock(&p.mutex_);
    return nullptr;
}

void Pool::work(int thread) {
    for (;;) {
        const int item = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
        if (item >= count_) return;
        task_(context_, item, thread);
    }
}

void Pool::run(int count, Task task, void *context) {
    pthread_mutex_lock(&mutex_);
    count_ = count, next_ = 0, task_ = task, context_ = context;
    busy_ = threads_ - 1;
    round_++;
    if (threads_ > 1) pthread_cond_broadcast(&begin_);
    pthread_mutex_unlock(&mutex_);
    work(0);
    pthread_mutex_lock(&mutex_);
    while (busy_ > 0) pthread_cond_wait(&end_, &mutex_);
    pthread_mutex_unlock(&mutex_);
}

}  // namespace evs
