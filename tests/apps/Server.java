// A threaded server in Java, with a mapped file beside its heap. `java Server.java PORT DIR`.
// Speaks what tests/apps/README.md tells.

import java.io.BufferedReader;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.RandomAccessFile;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

public class Server {
    static final Map<Integer, byte[]> items = new HashMap<>();
    static final ExecutorService pool = Executors.newFixedThreadPool(4);
    static int count;
    static volatile long ticks;
    static FileOutputStream log;
    static MappedByteBuffer mapped;

    public static void main(String[] arguments) throws Exception {
        log = new FileOutputStream(arguments[1] + "/log", true);
        try (RandomAccessFile file = new RandomAccessFile(arguments[1] + "/mapped", "rw")) {
            mapped = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, 4096);
        }
        Thread ticking = new Thread(Server::tick);
        ticking.setDaemon(true);
        ticking.start();
        try (ServerSocket server = new ServerSocket(Integer.parseInt(arguments[0]), 64, InetAddress.getLoopbackAddress())) {
            while (true) {
                Socket client = server.accept();
                new Thread(() -> talk(client)).start();
            }
        }
    }

    static void tick() {
        try {
            while (true) {
                Thread.sleep(5);
                ticks++;
            }
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    static void talk(Socket client) {
        try (client) {
            BufferedReader in = new BufferedReader(new InputStreamReader(client.getInputStream()));
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                String said = line.equals("add") ? add() : check();
                client.getOutputStream().write((said + "\n").getBytes());
            }
        } catch (Exception e) {
            System.err.println(e);
        }
    }

    static synchronized String add() throws Exception {
        count++;
        final int number = count;
        items.put(number, new byte[256]); // enough for collections of garbage
        log.write((number + "\n").getBytes());
        mapped.putInt(0, number);
        int squared = pool.submit(() -> number * number).get();
        return squared == number * number ? "ok " + number : "failed at " + number + ": " + squared;
    }

    static synchronized String check() throws IOException, InterruptedException {
        long before = ticks;
        for (int i = 0; i < 1000 && ticks == before; i++) {
            Thread.sleep(5);
        }
        if (ticks == before) {
            return "failed: a sleeping thread stands still";
        }
        if (items.size() != count || mapped.getInt(0) != count) {
            return "failed: " + items.size() + " items, mapped " + mapped.getInt(0) + ", count " + count;
        }
        Process child = new ProcessBuilder("/bin/echo", "new").start();
        String said = new String(child.getInputStream().readAllBytes());
        return said.equals("new\n") && child.waitFor() == 0 ? "ok " + count : "failed: a new child said " + said;
    }
}
