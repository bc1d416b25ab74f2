# A kind node that has no images in it yet.
ARG SYSTEM
FROM $SYSTEM
ARG KUBERNETES
COPY kind/ files/ /
COPY kubeadm kubectl kubelet /usr/bin/
COPY finish /
RUN /finish && rm /finish && printf %s "$KUBERNETES" > /kind/version
# How systemd learns that it is in a container, and how it wants to be stopped.
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
# Tells e2e/cluster/cluster that the image brings its own network for pods.
LABEL dev.jetwright.pod-network=ptp
